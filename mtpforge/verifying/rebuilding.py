"""The command that makes a draft anew, with the arguments that its draft and target need."""

from __future__ import annotations

import shlex
from pathlib import Path

from mtpforge import manifest
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import DEFAULT
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.sourcing import has_layer

IN_GENERAL = "mtpforge build --target CKPT --force -o DRAFT"


def command(draft: Checkpoint, target: Checkpoint, source: Checkpoint | None, engine: str) -> str:
    """`mtpforge build` for this target, from the source that is known, over a draft that `--force` may replace.

    A folder without our manifest is left alone: build refuses to replace it, so the new draft goes where drafts go.
    """
    words = ["mtpforge", "build", "--target", target.label]
    known = source.label if source else _source(draft)
    if known:
        words += ["--source", known]
    elif has_layer(target, family_of(target.config)):
        words += ["--standalone"]  # else there may be nothing to build
    if engine != DEFAULT:
        words += ["--engine", engine]
    if not draft.revision and (Path(draft.location) / manifest.FILE).is_file():
        words += ["--force", "-o", draft.label]
    return shlex.join(words)


def _source(draft: Checkpoint) -> str:
    """What our manifest says it was made from, where that can be typed: a repository. Of a folder it knows a hash."""
    try:
        told = manifest.find(draft)
    except MtpforgeError:
        return ""
    return told.source if told and "@" in told.source else ""
