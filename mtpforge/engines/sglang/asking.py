"""SGLang's own loader is not asked yet: what is said instead."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mtpforge import errors
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Serving
from mtpforge.errors import MtpforgeError
from mtpforge.report import Report


def is_installed() -> bool:
    """Whether SGLang can be found in this interpreter; it is not imported."""
    return importlib.util.find_spec("sglang") is not None


def ask(_draft: Path, _target: Checkpoint, _serving: Serving, _python: str | None) -> Report:
    """MtpforgeError: nobody asks it yet."""
    raise MtpforgeError(
        "SGLang's own loader cannot be asked yet",
        why="mtpforge knows its rules as read in and run with 0.5.23, and runs no part of it",
        fix="`mtpforge verify DRAFT --target CKPT --engine sglang` says all that is known; start the server to be sure",
        code=errors.MACHINE,
    )
