"""build(): the order of a build, from the first look at the disk to the rename."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import ClassVar, Final, TypeAlias

from mtpforge import errors, manifest
from mtpforge.building import device as devices
from mtpforge.building import fitted_codes, notice
from mtpforge.building.encoding import encoded_weights
from mtpforge.building.executing import Executor
from mtpforge.building.sample_digests import Samples
from mtpforge.building.workers import Workers
from mtpforge.checking import CheckResult, ReferenceCheck, Selection, choose
from mtpforge.checking.selection import Mode
from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.folder import open_folder
from mtpforge.errors import MtpforgeError, shown
from mtpforge.nextn.hessians import Calibration
from mtpforge.planning.steps import Plan
from mtpforge.report import Check, OnProgress, Progress, Report
from mtpforge.tensors import Spec
from mtpforge.weights import Buffers
from mtpforge.weights.compiling import kernels_for
from mtpforge.writing import layout, preflight
from mtpforge.writing.folder import DraftFolder, kept_steps
from mtpforge.writing.layout import ShardLayout

Judge: TypeAlias = Callable[[Path], Report]

_NAMED: Final = 5  # failed checks that an error spells out; the report has them all


@dataclass(frozen=True, slots=True, repr=False)
class Draft:
    """A finished draft: folder, config, manifest, and the report: the reference check, then what the judge found."""

    path: Path
    config: dict[str, object]
    manifest: manifest.Manifest
    report: Report
    command: ClassVar = "build"

    def document(self) -> dict[str, object]:
        """What `--json` holds of it, but for what only the plan and the command know."""
        return {"draft": self.path, "report": self.report, "manifest": self.manifest.body}

    def __repr__(self) -> str:
        """One line: the manifest names every tensor."""
        return f"<draft {shown(self.path)}>"

    def __str__(self) -> str:
        """Where it lies, and the report."""
        return f"draft in {shown(self.path)}\n{self.report}"

    def _repr_html_(self) -> str:
        return f"<p>draft in <code>{escape(shown(self.path))}</code></p>{self.report._repr_html_()}"


def build(
    plan: Plan,
    checkpoints: Mapping[str, Checkpoint],
    out: Path,
    *,
    workers: int = 0,
    memory: int = 2 << 30,
    check: Mode = "sample",
    force: bool = False,
    max_shard_bytes: int | None = None,
    judge: Judge | None = None,
    kernels: bool | None = None,
    device: str = "cpu",
    calibration: Calibration | None = None,
    on_progress: OnProgress | None = None,
) -> Draft:
    """The draft that the plan decides, at `out`; whole, or not there.

    checkpoints: by origin of the plan's reads ("source", "target", ...). workers: threads, 0 for one a core; their
    number changes no byte. memory: bytes for this process and the reference check's. check: how much of what is decoded
    an independent library decodes again. force: replace an existing draft, at the very end. max_shard_bytes: split the
    weights. judge: is shown the finished folder before it appears; a report that is not ok is an error with code 1.
    kernels: compiled row kernels, which change no byte; None where they save time. device: "cpu", "cuda", "cuda:N", or
    "auto" for a GPU where there is one and enough to do; it changes no byte either, and uses no kernels. calibration:
    what a plan with `inputs` needs: those very inputs, and the plan's own experts.

    The same call goes on where an interrupted one stopped. Raises MtpforgeError; code 5 for disk, lock and output.
    """
    fitted_codes.refuse_other(plan, calibration)
    where = devices.choose(device, plan.steps)
    job = _Job(plan, checkpoints, out.absolute(), plan.specs, kernels, where, calibration)
    layouts = layout.place(job.specs.items(), max_shard_bytes)
    preflight.refuse_output(checkpoints, job.out)
    preflight.refuse_small_disk(plan, checkpoints, job.out)
    served = plan.target.identity if plan.target else ""
    folder = DraftFolder(job.out, _key(plan, layouts), layouts, target=served, force=force)
    try:
        drawn = choose(plan.steps, check)
        with ReferenceCheck(drawn) as reference:  # first: its libraries take long to import
            _fetch(job, on_progress)
            threads = workers or (0 if job.device is None else min(os.cpu_count() or 1, devices.THREADS))
            if calibration is not None:
                calibration.run(on_progress)
                memory -= calibration.n_bytes
            pool = Workers(plan.steps, threads, memory)
            checked = _compared(drawn, _weights(job, folder, drawn, reference, pool, on_progress))
        report = _rest(job, folder, layouts, checked, judge, on_progress)
        folder.commit()
    except KeyboardInterrupt as stop:
        keep = folder.has_progress
        folder.abandon(keep=keep)
        raise _interrupted(job.out, keep=keep) from stop
    except MtpforgeError as error:
        # An input that cannot be used stays so: only what this machine or the network refused is worth resuming.
        folder.abandon(keep=folder.has_progress and error.code in {errors.MACHINE, errors.REMOTE})
        raise
    except BaseException:
        folder.abandon(keep=folder.has_progress)
        raise
    return Draft(job.out, plan.config, manifest.read(open_folder(job.out)), report)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is built from what, and where."""

    plan: Plan
    checkpoints: Mapping[str, Checkpoint]
    out: Path
    specs: Mapping[str, Spec]
    kernels: bool | None
    device: devices.Device | None
    calibration: Calibration | None


def _weights(
    job: _Job,
    folder: DraftFolder,
    drawn: Selection,
    reference: ReferenceCheck,
    pool: Workers,
    on_progress: OnProgress | None,
) -> CheckResult:
    """Every tensor, by threads in plan order, while a process decodes the samples with the formats' libraries."""
    counter = _Counter(sum(spec.n_bytes for spec in job.specs.values()), on_progress)
    samples = Samples(drawn.bands)
    files = {r.file: job.checkpoints[r.origin].local_file(r.file) for s in drawn.samples for r in s.reads.values()}

    def advance(n_bytes: int) -> None:
        pool.leave_if_stopped()
        counter.add(n_bytes)

    kernels = kernels_for(encoded_weights(job.plan.steps), wanted=False if job.device else job.kernels)

    factor = job.calibration.factor if job.calibration else lambda _: None

    def executor() -> Executor:
        buffers = Buffers() if job.device is None else Buffers(2, job.device.host)
        lane = None if job.device is None else devices.Lane(job.device, samples)
        return Executor(job.checkpoints, buffers, folder, samples, advance, kernels(), lane, factor)

    reference.begin(files)
    with devices.told(job.device):
        pool.run(executor)
    return reference.finish(samples.digests, on_progress)


def _compared(drawn: Selection, result: CheckResult) -> Check:
    """The reference check in the manifest's words; a difference never comes so far."""
    left_out = [f"{n:,} weights not compared: {reason}" for reason, n in sorted(drawn.uncompared.items())]
    if not result.n_tensors:
        reason = "switched off" if drawn.mode == "off" else "; ".join(left_out) or "no weight to compare"
        return Check("reference", "not checked", reason)
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(result.libraries.items()))
    found = f"{result.n_elements:,} values of {result.n_tensors:,} weights equal as BF16 in {libraries} ({drawn.mode})"
    return Check("reference", "passed", "; ".join([found, *left_out]))


def _rest(
    job: _Job,
    folder: DraftFolder,
    layouts: tuple[ShardLayout, ...],
    checked: Check,
    judge: Judge | None,
    on_progress: OnProgress | None,
) -> Report:
    """The small files, then the judge's word on the whole, which the manifest keeps."""
    folder.flush()
    digests = {name: digest for step in folder.finished.values() for name, digest in step.items()}
    if len(layouts) > 1:
        folder.write_file(metadata.INDEX, layout.index(layouts, job.specs))
    folder.write_file("config.json", (json.dumps(job.plan.config, indent=2) + "\n").encode())
    for name, data in notice.documents(job.plan, job.checkpoints["source"].documents()).items():
        folder.write_file(name, data)
    folder.write_file(manifest.FILE, manifest.write(job.plan, job.specs, digests, [checked]))
    if judge is None:
        return Report("build", (checked,))
    report = judge(folder.path)
    if not report.ok:
        raise _refused(report)
    if job.calibration is not None:
        report = fitted_codes.compared(report, job.plan, job.calibration, folder.path, on_progress)
    told = replace(report, checks=tuple(_without_paths(check, job, folder) for check in report.checks))
    folder.write_file(manifest.FILE, manifest.write(job.plan, job.specs, digests, [checked], told))
    return replace(report, checks=(checked, *report.checks))


def _without_paths(check: Check, job: _Job, folder: DraftFolder) -> Check:
    """The check as it reads on every machine: the manifest must not differ by where things lie."""
    sides = [side for side in (job.plan.source, job.plan.target) if side]
    names = {str(folder.path): "the draft", str(job.out): job.out.name} | {s.location: s.identity for s in sides}
    detail, fix = check.detail, check.fix
    for path, name in names.items():
        detail, fix = detail.replace(path, name), fix.replace(path, name)
    return replace(check, detail=detail, fix=fix)


def _fetch(job: _Job, on_progress: OnProgress | None) -> None:
    """Bytes of hub repositories into the cache, in one go: ranges that touch are one request."""
    for checkpoint, refs in preflight.reads(job.plan, job.checkpoints):
        checkpoint.fetch(refs, on_progress)


def _key(plan: Plan, layouts: tuple[ShardLayout, ...]) -> str:
    """What an earlier run must share for its bytes to be used: the plan, and where each byte lies."""
    digest = hashlib.sha256(plan.digest.encode())
    for shard in layouts:
        digest.update(shard.file.encode() + b"\0" + shard.header)
    return digest.hexdigest()


def _refused(report: Report) -> MtpforgeError:
    failed = [f"{c.name}: {c.detail}" for c in report.checks if c.verdict == "failed"]
    failed += [trap.message for trap in report.traps if trap.severity == "error"]
    fixes = [c.fix for c in report.checks if c.verdict == "failed" and c.fix]
    return MtpforgeError(
        "the draft did not pass its own verification, so it was not published",
        why="; ".join(failed[:_NAMED]) + (f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""),
        fix=fixes[0] if fixes else "",
        code=errors.ANSWER_NO,
    )


def _interrupted(out: Path, *, keep: bool) -> MtpforgeError:
    return MtpforgeError(
        "interrupted",
        why=kept_steps(out),
        fix="the same command goes on from there" if keep else "",
        code=errors.INTERRUPTED,
    )


class _Counter:
    """Adds up bytes from several threads and tells whoever listens."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._total, self._listener, self._done = total, on_progress, 0
        self._lock = threading.Lock()

    def add(self, n_bytes: int) -> None:
        if n_bytes and self._listener:
            with self._lock:
                self._done += n_bytes
                self._listener(Progress("build", self._done, self._total))
