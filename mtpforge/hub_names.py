"""What of a hub id, or of a path on any machine, names the model."""

from __future__ import annotations

from typing import Final

_LONGEST: Final = 1_000  # of a name; a config may hold any text
_SNAPSHOTS: Final = "snapshots"  # huggingface_hub's cache: models--org--name/snapshots/<commit>
_REPOSITORY, _JOINED = "models--", "--"


def model_name(place: str) -> str:
    """The last part, as it is spelled; in the hub's cache that of the repository; "" for nothing.

    >>> model_name("org/Name"), model_name("/hub/models--org--Name/snapshots/0123abcd")
    ('Name', 'Name')
    """
    parts = [part for part in place[-_LONGEST:].replace("\\", "/").split("/") if part]
    if parts[-2:-1] == [_SNAPSHOTS] and len(parts) > len([_SNAPSHOTS, ""]):
        repository = parts[-3]
        return repository.rpartition(_JOINED)[2] if repository.startswith(_REPOSITORY) else repository
    return parts[-1] if parts else ""
