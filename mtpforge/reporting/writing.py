"""Where a page may lie, and how it gets there: at once, in place of an older one, never of anything else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from mtpforge import errors
from mtpforge.durable import files
from mtpforge.durable.refusing import refusals
from mtpforge.errors import MtpforgeError, shown
from mtpforge.reporting import placing
from mtpforge.reporting.drawing import refuse_no_library
from mtpforge.writing import outside

_SUFFIXES: Final = (".html", ".htm")
_MARK: Final = b'<meta name="generator" content="mtpforge">'
_WHAT: Final = "report"
_HEAD: Final = 1024  # bytes in which the mark stands


def refuse(path: Path) -> None:
    """MtpforgeError where no page could be written or may lie: not in a checkpoint. What is there stays as it is."""
    if path.suffix.lower() not in _SUFFIXES:
        raise MtpforgeError(
            f"`{shown(path)}` is no name of a report",
            where="option `--report`",
            why="a report is one HTML file",
            fix=f"`--report {shown(path.with_suffix('.html') if path.name else 'report.html')}`",
            code=errors.USAGE,
        )
    refuse_no_library("--report")
    placing.refuse_other(path, _WHAT, _is_report)
    outside.refuse_checkpoint(path, _WHAT, "--report")
    placing.refuse_unwritable(path, _WHAT)


def refuse_inside(path: Path, folders: Iterable[Path]) -> None:
    """MtpforgeError where a page would lie in one of the folders, which exist or are to be made."""
    outside.refuse_inside(path, _WHAT, "--report", folders)


def write(path: Path, page: str) -> None:
    """The page, whole, or what was there before. MtpforgeError as `refuse`, and where the system does not let it."""
    refuse(path)
    with refusals(path, placing.words(_WHAT)):
        files.replace(path.absolute(), page.encode())


def _is_report(file: BinaryIO) -> bool:
    return _MARK in file.read(_HEAD)
