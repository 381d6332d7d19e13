"""Where a draft goes, or a file of calibration inputs, that nobody gave a place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from mtpforge import manifest
from mtpforge.checkpoint.checkpoint import Checkpoint, is_one
from mtpforge.checkpoint.folder import open_folder
from mtpforge.errors import MtpforgeError
from mtpforge.nextn import recording
from mtpforge.writing.folder import unfinished_target

_DIGITS: Final = 7  # of a folder's hash


def default_out(target: Checkpoint, scheme: str) -> Path:
    """`out/<target>-MTP-<scheme>` in the current folder, unless another target has a draft there, finished or not.

    Then `out/<org>-<target>-...` for a hub repository, `out/<target>-<hash>-...` for a folder. A target keeps the place
    at which it has a draft.
    """
    return _own(target, f"-MTP-{scheme}", _made_for)


def default_inputs(target: Checkpoint) -> Path:
    """`out/<target>-inputs.safetensors`, unless another target's lie there: then with its hash, as above."""
    return _own(target, "-inputs.safetensors", lambda place: [recording.target_of(place)])


def _own(target: Checkpoint, ending: str, made_for: Callable[[Path], list[str]]) -> Path:
    """The usual place, or that of no other target. made_for: identities of the targets that have a place, or ""."""
    plain, apart = (Path("out") / f"{name}{ending}" for name in _names(target))
    ours = {place: [is_one(told, target.identity) for told in made_for(place) if told] for place in (plain, apart)}
    return plain if all(ours[plain]) and not any(ours[apart]) else apart


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
    return [told.target if told else "", unfinished_target(place)]
