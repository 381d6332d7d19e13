"""Whether a page or a picture may lie at a place and can be written there: asked before anything long begins."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from mtpforge import errors
from mtpforge.checkpoint import metadata
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


def refuse_inside(path: Path, what: str, folders: Iterable[Path]) -> None:
    """MtpforgeError, code 5, where the place lies in one of these folders, which exist or are to be made."""
    within = Path(os.path.realpath(path)).parents
    for folder in folders:
        if Path(os.path.realpath(folder)) in within:
            raise _inside(path, what, f"`{shown(folder)}` is a checkpoint that this command reads or makes")


def refuse_checkpoint(path: Path, what: str) -> None:
    """MtpforgeError, code 5, where the place lies in a checkpoint: nothing is added to one."""
    for folder in Path(os.path.realpath(path)).parents:
        if _is_checkpoint(folder):
            raise _inside(path, what, f"`{shown(folder)}` is a checkpoint, which stays as it is")


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


def _is_checkpoint(folder: Path) -> bool:
    """Whether its config.json is a model's; people have files of that name for other things."""
    file = folder / metadata.CONFIG
    try:
        return file.is_file() and "model_type" in metadata.config(file.read_bytes())
    except (OSError, MtpforgeError):
        return False


def _inside(path: Path, what: str, why: str) -> MtpforgeError:
    return MtpforgeError(
        f"the {what} would lie in the folder of a checkpoint",
        where=shown(path),
        why=why,
        fix=f"choose a place beside it with `--{what}`",
        code=errors.MACHINE,
    )
