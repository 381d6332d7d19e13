"""versions_in(): the versions of a family's models that a name states: `cyankiwi/GLM-5.2-AWQ-INT4` says 5.2."""

from __future__ import annotations

import re
from typing import Final

from mtpforge.families.family import Family

_LONGEST: Final = 1_000  # of a name; a config may hold any text
_SNAPSHOTS: Final = "snapshots"  # huggingface_hub's cache: models--org--name/snapshots/<commit>
# Followed by a letter it is another model (GLM-4.5V) or a size (GLM-130B). A version may have lost its point: neither
# `glm-5-2` nor `glm52` is taken for anything. `5p2` is how some hosts write 5.2.
_NUMBER: Final = r"(\d++(?:[.p]\d+)++(?![a-z0-9])|\d(?![a-z0-9]|[.]\d|[-_]\d(?![a-z0-9])))"


def named(text: str) -> str:
    """The part of a path or hub id that names the model: the last one; in the hub's cache that of the repository."""
    parts = [part for part in text[-_LONGEST:].replace("\\", "/").split("/") if part]
    is_cached = parts[-2:-1] == [_SNAPSHOTS] and len(parts) > len([_SNAPSHOTS, ""])
    return (parts[-3] if is_cached else parts[-1]) if parts else ""


def versions_in(name: str, family: Family) -> tuple[str, ...]:
    """The versions that a hub id or path states, each once, spelled as the family's table does; () for none."""
    text = named(name).lower()
    found = re.finditer(rf"(?<![a-z0-9]){re.escape(family.stem.lower())}[-_ ]?{_NUMBER}", text)
    return tuple(dict.fromkeys(_whole(match[1].replace("p", "."), text[match.end() :], family) for match in found))


def _whole(number: str, rest: str, family: Family) -> str:
    """The number, with the word behind it where that makes another version: `4.5-Air`."""
    longer = (version for version in family.base_models if version.startswith(f"{number}-"))
    words = ((version, version.removeprefix(f"{number}-").lower()) for version in longer)
    return next((version for version, word in words if re.match(rf"[-_ ]{word}(?![a-z0-9])", rest)), number)
