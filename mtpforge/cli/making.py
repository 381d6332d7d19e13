"""What build, extract and demo share: show the plan, make the draft, show what was proved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from mtpforge.cli.experts import measured_on
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.showing import show_plan, without
from mtpforge.errors import MtpforgeError
from mtpforge.units import file_size

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint
    from mtpforge.engines.engine import Serving
    from mtpforge.nextn.hessians import Calibration
    from mtpforge.planning import Plan
    from mtpforge.report import OnProgress, Report
    from mtpforge.scheme import Scheme
    from mtpforge.tensors import ScaleMethod


Check = Literal["full", "sample", "off"]

_OF_SERVING: Final = frozenset({"path", "target", "serving", "loader"})  # names of verify's checks


@dataclass(frozen=True, slots=True)
class Limits:
    """How a build runs and writes; none of it changes a byte of a tensor."""

    workers: int = 0
    memory: int = 2 << 30
    check: Check = "sample"
    force: bool = False
    max_shard_bytes: int | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Job:
    """One draft to make: checkpoints by role, whose rules, where to.

    kept: experts of the source, None for all. calibration: what codes are fitted to, where `scales` is gptq.
    """

    source: Checkpoint
    target: Checkpoint | None
    out: Path | None
    serving: Serving
    engine: str = "vllm"
    scheme: Scheme | None = None
    input_scales: Checkpoint | None = None
    kept: tuple[int, ...] | None = None
    scales: ScaleMethod = "rtn"
    calibration: Calibration | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def served(self) -> Checkpoint:
        """What the draft is for: the target, or what stands in for it."""
        return self.target or self.source

    @property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """By the origin that a plan's reads name."""
        given = {"source": self.source, "target": self.target, "scales": self.input_scales}
        return {origin: checkpoint for origin, checkpoint in given.items() if checkpoint is not None}


def refuse_early(limits: Limits, out: Path | None) -> None:
    """MtpforgeError, before anything is read, for a GPU that is not there and an output that would be refused."""
    from mtpforge.writing.folder import refuse_existing

    if limits.device.startswith("cuda"):
        from mtpforge.building import device as devices

        devices.choose(limits.device, ())
    if out is not None:
        refuse_existing(out, force=limits.force)


def decide(screen: Screen, job: Job) -> tuple[Plan, Path]:
    """The plan, shown, and the folder that the draft will be."""
    from mtpforge.engines import ENGINES
    from mtpforge.planning import plan

    decided = plan(
        job.source,
        job.target,
        engine=job.engine,
        scheme=job.scheme,
        kept=job.kept,
        serving=job.serving,
        input_scales=job.input_scales,
        scales=job.scales,
        inputs=job.calibration.inputs.digest if job.calibration else "",
    )
    if job.calibration:
        fitted_to = measured_on(job.calibration.inputs)
        decided = replace(decided, facts={**decided.facts, "fitted_to": fitted_to})
    out = job.out or default_out(job.served, decided.scheme.name)
    show_plan(screen, decided, out, ENGINES[job.engine], job.serving)
    return decided, out


def default_out(target: Checkpoint, scheme: str) -> Path:
    """`out/<target>-MTP-<scheme>` in the current folder."""
    name = target.label.split("@")[0] if target.revision else target.location
    return Path("out") / f"{Path(name).name}-MTP-{scheme}"


def end_dry_run(screen: Screen, job: Job, plan: Plan, out: Path) -> Ending:
    """The plan as the result; fails as the build would where the output exists or the disk is too small."""
    from mtpforge.writing.preflight import preflight

    preflight(plan, job.checkpoints, out, force=job.limits.force)
    screen.answer(str(out))
    screen.next("mtpforge", *without(screen.argv, "--dry-run"))
    return Ending({"plan": plan, "digest": plan.digest, "draft": out})


def carry_out(screen: Screen, job: Job, plan: Plan, out: Path) -> Ending:
    """Build, verify, show; exit code 1 where the draft is not what the target demands."""
    from mtpforge.building import build
    from mtpforge.checkpoint.checkpoint import Downloaded

    screen.kept = f"the steps that were finished are kept beside {out}"
    limits = job.limits
    with screen.progress() as on_progress:
        draft = build(
            plan,
            job.checkpoints,
            out,
            workers=limits.workers,
            memory=limits.memory,
            check=limits.check,
            force=limits.force,
            max_shard_bytes=limits.max_shard_bytes,
            device=limits.device,
            calibration=job.calibration,
            judge=_judge(job, plan, out, on_progress),
            on_progress=on_progress,
        )
    screen.kept = f"the draft is whole: {out}"
    assert draft.report is not None  # noqa: S101 -- the judge's
    screen.line()
    screen.report(draft.report)
    n_bytes = sum(file.stat().st_size for file in draft.path.iterdir())
    screen.line()
    screen.line(f"wrote   {out}   {file_size(n_bytes)}", "green")
    downloaded = sum((c.downloaded for c in {id(c): c for c in job.checkpoints.values()}.values()), Downloaded())
    if screen.verbose and downloaded.n_bytes:
        again = file_size(downloaded.again_bytes)
        screen.line(f"        fetched {file_size(downloaded.n_bytes)}, and {again} a second time to compare")
    screen.answer(str(out))
    document = {"draft": out, "plan_digest": plan.digest, "report": draft.report, "traps": plan.traps}
    return Ending({**document, "downloaded": downloaded, "manifest": draft.manifest.body}, draft.report.exit_code)


def _judge(job: Job, plan: Plan, out: Path, on_progress: OnProgress) -> Callable[[Path], Report]:
    """Opens the finished folder as a stranger would, before it gets its name."""

    def judge(folder: Path) -> Report:
        from mtpforge.verifying import verify

        report = verify(
            folder,
            job.served,
            job.source,
            engine=job.engine,
            serving=job.serving,
            scheme=None if job.target else plan.scheme,
            served_as=str(out.absolute()),
            on_progress=on_progress,
        )
        return report if job.target else _unserved(report)

    return judge


def _unserved(report: Report) -> Report:
    """What is left to judge where nothing will be served: the layer itself."""
    return replace(report, checks=tuple(c for c in report.checks if c.name not in _OF_SERVING), traps=())


def show_serve(screen: Screen, job: Job, draft: str) -> list[str] | None:
    """The server command for a draft (absolute folder or hub id), printed to be copied; its words.

    None, and what has to be done first, where no command serves the target as it is.
    """
    from mtpforge.engines import ENGINES
    from mtpforge.report import Trap

    try:
        argv = ENGINES[job.engine].serve(job.served, draft, job.serving)
    except MtpforgeError as error:  # the draft is none the worse for it
        screen.traps((Trap("no-serve-command", "warning", f"{error.what}: {error.why}", error.fix, error.where),))
        return None
    if not screen.quiet:
        screen.line()
        screen.command_line(argv)
    return argv


def with_keys(ending: Ending, keys: Mapping[str, object]) -> Ending:
    """An ending whose JSON document has more keys."""
    return replace(ending, document={**ending.document, **keys})
