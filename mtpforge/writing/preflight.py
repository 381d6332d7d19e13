"""What would end a build before its first byte: an output that must not be replaced, a disk that is too small.

Writes nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mtpforge import errors
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.hub import cache
from mtpforge.errors import MtpforgeError, shown
from mtpforge.formats import FORMATS, label
from mtpforge.planning.steps import Plan
from mtpforge.tensors import TensorRef
from mtpforge.units import file_size
from mtpforge.writing.claim import DRAFT, hidden_folder, on_disk
from mtpforge.writing.folder import MANIFEST, kind, option, refuse_existing, room

_ROLES: Final = {"scales": "file of activation scales"}
_WEIGHTS: Final = (".safetensors", ".gguf")


def preflight(plan: Plan, checkpoints: Mapping[str, Checkpoint], out: Path, *, force: bool = False) -> None:
    """Raise MtpforgeError, code 5, where a build of this plan to `out` could not start."""
    refuse_missing_packages(plan)
    refuse_output(checkpoints, out)
    refuse_unwritable(out)
    refuse_existing(out, force=force)
    refuse_small_disk(plan, checkpoints, out)


def refuse_missing_packages(plan: Plan) -> None:
    """Refuse where what decodes a format of the source is not installed."""
    stored = {
        label(move.stored): FORMATS[move.stored.format].package(move.stored)
        for step in plan.steps
        for move in step.moves
    }
    for shown_as, package in stored.items():
        if package and find_spec(package) is None:
            raise MtpforgeError(
                f"weights in {shown_as} need the package {package}, which is missing",
                where=shown(plan.source.label),
                why="it decodes them, and no other source needs it",
                fix=f"`pip install 'mtpforge[{package}]'`",
                code=errors.MACHINE,
            )


def refuse_unwritable(out: Path, what: str = DRAFT, option: str = "--out") -> None:
    """Refuse an output that could not be made where it is to lie. What exists of its path is looked at, no more.

    what: the output is. option: by which its place is chosen.
    """
    with on_disk(out, what, option):
        with suppress(FileNotFoundError):
            hidden_folder(out.absolute()).lstat()  # a file among its folders, a name too long
        home = next(folder for folder in out.absolute().parents if folder.exists())
        if os.statvfs(home).f_files == 0 == os.statvfs(home).f_blocks:  # /proc, /sys: permissions do not tell
            raise OSError(errno.EROFS, "it is no disk: what lies there is made up by the system", str(home))
        if not os.access(home, os.W_OK | os.X_OK):
            is_read_only = os.statvfs(home).f_flag & os.ST_RDONLY
            number = errno.EROFS if is_read_only else errno.EACCES
            raise OSError(number, os.strerror(number), str(home))


def refuse_output(checkpoints: Mapping[str, Checkpoint], out: Path, *, mark: str = MANIFEST) -> None:
    """Refuse an output that not even --force may replace: an input, what holds one or lies in one, a link, no draft."""
    with on_disk(out, kind(mark), option(mark)):
        real = Path(os.path.realpath(out))  # resolve() raises RuntimeError where links lead round in a circle
        for origin, checkpoint in checkpoints.items():
            if place := _place(checkpoint):
                _refuse_overlap(out, real, _ROLES.get(origin, origin), place.resolve(), option(mark))
        if out.is_symlink():
            leads = f"it leads to `{shown(out.readlink())}`" + ("" if out.exists() else ", where nothing is")
            raise MtpforgeError(
                "the output is a link",
                where=shown(out),
                why=f"{leads}; the {kind(mark)} would take the place of the link itself",
                fix=f"name the folder that it leads to, or another output, with `{option(mark)}`",
                code=errors.MACHINE,
            )
        refuse_existing(out, force=True, mark=mark)


def _refuse_overlap(out: Path, real: Path, role: str, place: Path, chooses: str) -> None:
    if real == place:
        how = f"the output is the {role}"
    elif place.is_relative_to(real):
        how = f"the output would replace a folder that holds the {role}"
    elif place.is_dir() and real.is_relative_to(place):
        how = f"the output lies in the folder of the {role}"
    else:
        return
    raise MtpforgeError(
        how,
        where=shown(out),
        why=f"the {role} is `{shown(place)}`",
        fix=f"choose another output with `{chooses}`",
        code=errors.MACHINE,
    )


def _place(checkpoint: Checkpoint) -> Path | None:
    """Where an input lies on this machine: its folder, or the one file that was named; None for a hub repository."""
    file = Path(os.path.expanduser(checkpoint.label))  # noqa: PTH111 -- Path's raises where nobody is called so
    if file.suffix in _WEIGHTS and file.is_file():
        return file
    folder = Path(checkpoint.location)
    return folder if folder.is_absolute() and folder.is_dir() else None


def refuse_small_disk(plan: Plan, checkpoints: Mapping[str, Checkpoint], out: Path) -> None:
    """Refuse where draft and missing downloads do not fit; downloads count where their cache is on the same disk."""
    needed = sum(spec.n_bytes for spec in plan.specs.values())
    if _device(cache.home()) == _device(out.absolute()):
        needed += sum(checkpoint.missing_bytes(refs) for checkpoint, refs in reads(plan, checkpoints))
    refuse_small(needed, out)


def refuse_small(needed: int, out: Path) -> None:
    """Refuse where so many bytes do not fit."""
    free = room(out)
    if free < needed:
        raise MtpforgeError(
            f"not enough disk: {file_size(needed)} are needed, {file_size(free)} are free",
            where=shown(out),
            fix="free some, or choose another disk with `--out`",
            code=errors.MACHINE,
        )


def reads(plan: Plan, checkpoints: Mapping[str, Checkpoint]) -> Iterator[tuple[Checkpoint, list[TensorRef]]]:
    """Each checkpoint that a plan reads, and what of it."""
    refs = [ref for step in plan.steps for ref in step.reads]
    for origin in dict.fromkeys(ref.origin for ref in refs):
        yield checkpoints[origin], [ref for ref in refs if ref.origin == origin]


def _device(path: Path) -> int:
    return next(folder for folder in (path, *path.parents) if folder.exists()).stat().st_dev
