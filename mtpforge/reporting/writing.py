"""Where a page may lie, and how it gets there: at once, in place of an older one, never of anything else."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from mtpforge import errors
from mtpforge.durable import files
from mtpforge.durable.refusing import Words, refusals
from mtpforge.errors import MtpforgeError, shown
from mtpforge.reporting.drawing import refuse_no_library

_SUFFIXES: Final = (".html", ".htm")
_MARK: Final = b'<meta name="generator" content="mtpforge">'
_HEAD: Final = 1024  # bytes in which the mark stands
_WORDS: Final = Words(
    full="the disk is full: the report could not be written",
    make_room="free some, or choose another place with `--report`",
    refused="the report cannot be written there",
    choose="choose another place with `--report`",
)


def refuse(path: Path) -> None:
    """MtpforgeError where no page could be written. What is there is looked at, no more."""
    if path.suffix.lower() not in _SUFFIXES:
        raise MtpforgeError(
            f"`{shown(path)}` is no name of a report",
            where="option `--report`",
            why="a report is one HTML file",
            fix=f"`--report {shown(path.with_suffix('.html') if path.name else 'report.html')}`",
            code=errors.USAGE,
        )
    refuse_no_library("--report")
    with refusals(path, _WORDS):
        if os.path.lexists(path):
            _refuse_other(path)
        home = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if not home.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(home))
        if not os.access(home, os.W_OK | os.X_OK):
            number = errno.EROFS if os.statvfs(home).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number), str(home))


def write(path: Path, page: str) -> None:
    """The page, whole, or what was there before. MtpforgeError as `refuse`, and where the system does not let it."""
    refuse(path)
    with refusals(path, _WORDS):
        files.replace(path.absolute(), page.encode())


def _refuse_other(path: Path) -> None:
    """What is there must be an older report."""
    if path.is_file() and not path.is_symlink():
        with path.open("rb") as file:
            if _MARK in file.read(_HEAD):
                return
    what = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "no report of mtpforge"
    raise MtpforgeError(
        "the report would take the place of something else",
        where=shown(path),
        why=f"it is {what}; only an older report is replaced",
        fix="choose another name with `--report`",
        code=errors.MACHINE,
    )
