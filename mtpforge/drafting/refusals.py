"""What would end a job, asked before anything takes long: the GPU, the output's path, memory, the disk, the output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from mtpforge import errors
from mtpforge.drafting.request import CheckMode
from mtpforge.engines import engine_of
from mtpforge.errors import MtpforgeError, shown
from mtpforge.heads import LIGHTEST
from mtpforge.planning import RESERVED_BYTES
from mtpforge.pruning import METHODS
from mtpforge.units import memory_size
from mtpforge.writing import preflight
from mtpforge.writing.folder import refuse_existing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtpforge.checkpoint.checkpoint import Checkpoint
    from mtpforge.drafting.request import Request
    from mtpforge.nextn.hessians import Calibration
    from mtpforge.planning import Plan


def of_machine(request: Request) -> None:
    """MtpforgeError for a GPU that is not there."""
    if request.device.startswith("cuda"):
        from mtpforge.building import device as devices

        devices.choose(request.device, ())


def of_values(request: Request) -> None:
    """MtpforgeError for a value that only Python can give: the command line reads its own."""
    known = get_args(CheckMode)
    if request.check not in known:
        _refuse_value("check", request.check, f"one of {', '.join(known)}")
    if request.experts not in ("match", "keep") and not isinstance(request.experts, int):
        _refuse_value("experts", request.experts, "`match`, `keep`, or a number: `experts=168`")
    sizes = {"memory": request.memory, "max_shard_bytes": request.max_shard_bytes or 0}
    for name, value in sizes.items():
        if not isinstance(value, int):
            _refuse_value(name, value, f"a number of bytes: `{name}=2 << 30` for 2 GiB")


def _refuse_value(name: str, value: object, fix: str) -> NoReturn:
    raise MtpforgeError(f"{shown(repr(value))} is no value of `{name}`", fix=fix, code=errors.USAGE)


def of_family(request: Request, checkpoint: Checkpoint) -> None:
    """MtpforgeError where the layer would have to be run, and its family's cannot be."""
    scored = request.prune_by in METHODS and METHODS[request.prune_by].needs == "inputs"
    if request.inputs is not None or request.fits_codes or scored:
        from mtpforge.nextn.configuring import refuse_unrunnable

        refuse_unrunnable(checkpoint)


def of_source_alone(source: Checkpoint) -> None:
    """MtpforgeError for a source that has no config.json of its own, where no target lends the draft one."""
    if source.only_source:
        raise MtpforgeError(
            f"`{shown(source.label)}` has no config.json to make a draft's of",
            where=shown(source.location),
            why="a draft's config.json is its target's, and no target is named",
            fix=f"`mtpforge build --target CKPT --source {shown(source.label)}`, where CKPT may be the base model",
        )


def of_scheme(request: Request) -> None:
    """MtpforgeError for the lightest scheme of a target that nobody named."""
    if request.scheme == LIGHTEST:
        raise MtpforgeError(
            f"`--scheme {LIGHTEST}` asks what a target's method can state, and there is no target",
            where="option `--scheme`",
            fix="name a preset: `--scheme int4-g128-sym`; `mtpforge schemes` lists them",
            code=errors.USAGE,
        )


def of_output(out: Path, request: Request) -> None:
    """MtpforgeError for an output that cannot be written, or would be misread by the engine it is for."""
    for trap in engine_of(request.judge).path_traps(str(out.absolute())) if request.judge else ():
        if trap.severity == "error":
            raise MtpforgeError(
                trap.message,
                where=trap.where,
                fix=f"{trap.fix}: `--out PATH`",
                code=errors.USAGE,
            )
    preflight.refuse_unwritable(out)


def of_existing(out: Path, request: Request) -> None:
    """MtpforgeError for an output that exists: said last, lest it hide what is wrong with the plan."""
    refuse_existing(out, force=request.force)


def of_inputs(checkpoints: Mapping[str, Checkpoint], out: Path) -> None:
    """MtpforgeError for an output that is one of the inputs, or lies in one."""
    preflight.refuse_output(checkpoints, out)


def of_plan(
    request: Request, plan: Plan, checkpoints: Mapping[str, Checkpoint], out: Path, calibration: Calibration | None
) -> None:
    """MtpforgeError where memory or disk are too small for this plan."""
    needed = RESERVED_BYTES + max(step.peak_bytes for step in plan.steps)
    needed += calibration.n_bytes if calibration else 0
    if request.memory < needed:
        raise MtpforgeError(
            f"this draft needs {memory_size(needed)}, {memory_size(request.memory)} are allowed",
            where="option `--memory`",
            why=f"{memory_size(RESERVED_BYTES)} for torch and the reference check, the rest for the largest step",
            fix=f"`--memory {-(-needed // (1 << 20))}MiB` or more",
            code=errors.USAGE,
        )
    preflight.preflight(plan, checkpoints, out, force=request.force)
