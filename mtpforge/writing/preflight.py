"""What would end a build before its first byte: an output that exists, a disk that is too small. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mtpforge import errors
from mtpforge.checkpoint import cache
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError, shown
from mtpforge.planning.steps import Plan
from mtpforge.tensors import TensorRef
from mtpforge.units import file_size
from mtpforge.writing.folder import refuse_existing, room


def preflight(plan: Plan, checkpoints: Mapping[str, Checkpoint], out: Path, *, force: bool = False) -> None:
    """Raise MtpforgeError, code 5, where a build of this plan to `out` could not start."""
    refuse_existing(out, force=force)
    refuse_small_disk(plan, checkpoints, out)


def refuse_small_disk(plan: Plan, checkpoints: Mapping[str, Checkpoint], out: Path) -> None:
    """Refuse where draft and missing downloads do not fit; downloads count where their cache is on the same disk."""
    needed = sum(spec.n_bytes for spec in plan.specs.values())
    if _device(cache.home()) == _device(out.absolute()):
        needed += sum(checkpoint.missing_bytes(refs) for checkpoint, refs in reads(plan, checkpoints))
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
