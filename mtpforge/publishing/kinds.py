"""What `card` and `push` are not for, by name: grafts, deltas and merges, and how these are published."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Final

from mtpforge.checkpoint import Named, metadata
from mtpforge.errors import MtpforgeError, shown

_KINDS: Final = {metadata.DELTA: "delta", metadata.GRAFT: "graft", metadata.MERGE: "merge"}


def refuse_no_draft(named: Named, what_for: str, repo: str = "ORG/NAME") -> None:
    """MtpforgeError for a folder of mtpforge's that holds no draft. what_for: as in `a graft is not pushed`."""
    place, path = _place(named)
    found = [kind for file, kind in _KINDS.items() if _holds(path, file)]
    if not found or _holds(path, metadata.MANIFEST):
        return
    upload = f"`{shlex.join(['hf', 'upload', repo, shown(place), '--private'])}`"
    fix = {
        "delta": f"{upload} sends it; say in a README.md of its own what it is for: `graft --delta`, and which target",
        "graft": f"{upload} sends all of it; what it adds alone is `mtpforge delta DRAFT --against CKPT -o DIR`",
        "merge": f"{upload} sends it",
    }
    raise MtpforgeError(
        f"`{shown(place)}` is a {found[0]}: {what_for}",
        where=shown(path.absolute()),
        why="a card is made of a draft's manifest, and a draft is verified beside its target before it is sent",
        fix=fix[found[0]],
    )


def _holds(folder: Path, file: str) -> bool:
    return os.path.isfile(folder / file)  # noqa: PTH113 -- Path's raises for a name that is too long


def _place(named: Named) -> tuple[str, Path]:
    """What the user typed, and where that is."""
    if isinstance(named, str | os.PathLike):
        typed = os.fspath(named)
        return typed, Path(os.path.expanduser(typed))  # noqa: PTH111 -- Path's raises where nobody is called so
    return named.label, Path(named.location)
