"""Whether a page or a picture can be written at a place: asked before anything long begins."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from mtpforge import errors
from mtpforge.durable.refusing import Words, refusals
from mtpforge.errors import MtpforgeError, shown

_ROOM: Final = bytes(128 * 1024)  # pages of the tiny model have half of it
_BESIDE: Final = "." * 32  # what the name of a file has more that is to take a place


def words(what: str) -> Words:
    """What is said of a disk. what: "report" or "picture", which is its option too."""
    return Words(
        full=f"the disk is full: the {what} could not be written",
        make_room=f"free some, or choose another place with `--{what}`",
        refused=f"the {what} cannot be written there",
        choose=f"choose another place with `--{what}`",
    )


def refuse_other(path: Path, what: str, is_ours: Callable[[BinaryIO], bool]) -> None:
    """MtpforgeError, code 5, for what is there and no older page or picture of ours. is_ours: whether a file is one."""
    with refusals(path, words(what)):
        if not os.path.lexists(path):
            return
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if is_ours(file):
                    return
    found = "a link" if path.is_symlink() else "a folder" if path.is_dir() else f"no {what} of mtpforge"
    raise MtpforgeError(
        f"the {what} would take the place of something else",
        where=shown(path),
        why=f"it is {found}; only an older {what} is replaced",
        fix=f"choose another name with `--{what}`",
        code=errors.MACHINE,
    )


def refuse_unwritable(path: Path, what: str) -> None:
    """MtpforgeError, code 5, where the system would let no file of this name be written, or none as long as a page.

    The system is asked by writing a file without a name into the folder, the nearest that exists: permissions alone do
    not tell of a full disk, of /proc, or of what a server of files forbids.
    """
    whole = path.absolute()
    with refusals(path, words(what)):
        home = next(folder for folder in whole.parents if os.path.lexists(folder))
        for name in whole.relative_to(home).parts[:-1]:
            _look(home / name)
        _look(home / f"{whole.name}{_BESIDE}")
        _try(home)


def _try(home: Path) -> None:
    """Write and forget. OSError names the folder, not what was tried in it."""
    try:
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(_ROOM)
            file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(home)) from error


def _look(path: Path) -> None:
    """OSError where the file system has no such names."""
    with suppress(FileNotFoundError):
        path.lstat()
