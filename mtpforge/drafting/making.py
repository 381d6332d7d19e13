"""make(): a decided job carried out, and its draft judged before it gets its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mtpforge.building import Draft, build
from mtpforge.checkpoint.checkpoint import Downloaded
from mtpforge.drafting import overlaying
from mtpforge.drafting.deciding import Job
from mtpforge.engines import engine_of
from mtpforge.report import OnProgress, Report
from mtpforge.verifying import damage, verify


def make(job: Job, on_progress: OnProgress | None = None) -> Draft:
    """The draft, whole and verified.

    MtpforgeError where it cannot be made or is not what the target demands, and where the source is a draft or graft of
    ours that changed since.
    """
    request = job.request
    if job.source is not None:
        damage.refuse_changed_source(job.source, on_progress)
    draft = build(
        job.plan,
        job.checkpoints,
        job.out,
        workers=request.workers,
        memory=request.memory,
        check=request.check,
        force=request.force,
        max_shard_bytes=request.max_shard_bytes,
        device=request.device,
        calibration=job.calibration,
        judge=_judge(job, on_progress),
        on_progress=on_progress,
    )
    if request.overlay is not None and job.target is not None:
        overlaying.write(job.target, engine_of(request.engine), Path(request.overlay), force=request.force)
    return draft


def downloaded(job: Job) -> Downloaded:
    """What had to be fetched for it so far."""
    return sum((c.downloaded for c in {id(c): c for c in job.checkpoints.values()}.values()), Downloaded())


def _judge(job: Job, on_progress: OnProgress | None) -> Callable[[Path], Report]:
    """Opens the finished folder as a stranger would."""

    def judge(folder: Path) -> Report:
        return verify(
            folder,
            job.target,
            job.source,
            engine=job.plan.engine,
            serving=job.request.serving,
            scheme=None if job.target else job.plan.scheme,
            served_as=str(job.out.absolute()),
            on_progress=on_progress,
        )

    return judge
