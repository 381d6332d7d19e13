"""Where a draft goes that nobody gave a place."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mtpforge import manifest
from mtpforge.checkpoint.checkpoint import Checkpoint, is_one
from mtpforge.checkpoint.folder import open_folder
from mtpforge.errors import MtpforgeError
from mtpforge.writing.folder import unfinished_target

_DIGITS: Final = 7  # of a folder's hash


def default_out(target: Checkpoint, scheme: str) -> Path:
    """`out/<target>-MTP-<scheme>` in the current folder, unless another target has a draft there, finished or not.

    Then `out/<org>-<target>-...` for a hub repository, `out/<target>-<hash>-...` for a folder. A target keeps the place
    at which it has a draft.
    """
    plain, apart = (Path("out") / f"{name}-MTP-{scheme}" for name in _names(target))
    if any(is_one(made_for, target.identity) for made_for in _made_for(apart)):
        return apart
    return plain if all(is_one(made_for, target.identity) for made_for in _made_for(plain)) else apart


def _names(target: Checkpoint) -> tuple[str, str]:
    """The usual name, and one that no other target has."""
    if target.revision:
        org, _, name = target.label.partition("@")[0].rpartition("/")
        return name, f"{org}-{name}"
    name, _, content = target.identity.rpartition("#")
    return name, f"{name}-{content[:_DIGITS]}"


def _made_for(place: Path) -> list[str]:
    """Identities of the targets of the draft at this place, and of the one that is being made there."""
    try:
        told = manifest.find(open_folder(place))
    except MtpforgeError:
        told = None
    return [identity for identity in (told.target if told else "", unfinished_target(place)) if identity]
