"""Whether a file that is no part of a checkpoint would lie in one: nothing is added to a folder that engines load."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mtpforge import errors
from mtpforge.checkpoint import metadata
from mtpforge.errors import MtpforgeError, shown


def refuse_inside(path: Path, what: str, option: str, folders: Iterable[Path]) -> None:
    """MtpforgeError, code 5, where the place lies in one of these folders, which exist or are to be made.

    what: the file is. option: by which its place is chosen.
    """
    within = Path(os.path.realpath(path)).parents
    for folder in folders:
        if Path(os.path.realpath(folder)) in within:
            raise _inside(path, what, option, f"`{shown(folder)}` is a checkpoint that this command reads or makes")


def refuse_checkpoint(path: Path, what: str, option: str) -> None:
    """MtpforgeError, code 5, where the place lies in a checkpoint."""
    for folder in Path(os.path.realpath(path)).parents:
        if _is_checkpoint(folder):
            raise _inside(path, what, option, f"`{shown(folder)}` is a checkpoint, which stays as it is")


def _is_checkpoint(folder: Path) -> bool:
    """Whether its config.json is a model's; people have files of that name for other things."""
    file = folder / metadata.CONFIG
    try:
        return file.is_file() and "model_type" in metadata.config(file.read_bytes())
    except (OSError, MtpforgeError):
        return False


def _inside(path: Path, what: str, option: str, why: str) -> MtpforgeError:
    return MtpforgeError(
        f"the {what} would lie in the folder of a checkpoint",
        where=shown(path),
        why=why,
        fix=f"choose a place beside it with `{option}`",
        code=errors.MACHINE,
    )
