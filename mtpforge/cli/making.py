"""What build, extract and demo share: show the plan, or the draft and what was proved of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.showing import plan_document, show_plan, without
from mtpforge.errors import MtpforgeError, shown
from mtpforge.units import file_size

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint
    from mtpforge.drafting.deciding import Job, Needless
    from mtpforge.drafting.request import Request
    from mtpforge.scheme import Scheme


def decide(screen: Screen, request: Request) -> Job | Needless:
    """The job, or that there is none; a plan is shown."""
    from mtpforge.drafting import deciding

    with screen.watching() as watching:
        job = deciding.decide(request, watching)
    if isinstance(job, deciding.Job):
        if screen.page is not None:  # the place was chosen just now
            from mtpforge.reporting.writing import refuse_inside

            refuse_inside(screen.page, (job.out,))
        show_plan(screen, job.plan, job.out, request)
    return job


def end_dry_run(screen: Screen, job: Job) -> Ending:
    """The plan as the result; nothing for `-q`, as there is no draft."""
    screen.next("mtpforge", *without(screen.argv, "--dry-run"))
    plan = job.plan if screen.verbose else plan_document(job.plan)
    return Ending({"plan": plan, "digest": job.plan.digest, "draft": job.out})


def carry_out(screen: Screen, job: Job) -> Ending:
    """Build, verify, show; exit code 1 where the draft is not what the target demands."""
    from mtpforge.writing.folder import kept_steps

    screen.kept = lambda: kept_steps(job.out)
    with screen.progress() as on_progress:
        from mtpforge.drafting.making import downloaded, make
        from mtpforge.drafting.overlaying import WROTE

        draft = make(job, on_progress)
    screen.kept = lambda: f"the draft is whole: {job.out}"
    screen.line()
    screen.report(draft.report)
    n_bytes = sum(file.stat().st_size for file in draft.path.iterdir())
    screen.line()
    screen.line(f"wrote   {job.out}   {file_size(n_bytes)}", "green")
    if job.request.overlay is not None:
        screen.line(f"overlay {shown(job.request.overlay)} {WROTE}")
    fetched = downloaded(job)
    if screen.verbose and fetched.n_bytes:
        again = file_size(fetched.again_bytes)
        screen.line(f"        fetched {file_size(fetched.n_bytes)}, and {again} a second time to compare")
    screen.answer(str(job.out))
    document = {"draft": job.out, "plan_digest": job.plan.digest, "report": draft.report, "traps": job.plan.traps}
    return Ending({**document, "downloaded": fetched, "manifest": draft.manifest.body}, draft.report.exit_code)


def served(job: Job, target: str) -> tuple[Checkpoint, str]:
    """What the engine is given for the target, and how it is typed: the overlay, where one was written."""
    from mtpforge.checkpoint import open_checkpoint

    if job.request.overlay is None:
        return job.served, target
    return open_checkpoint(job.request.overlay), str(job.request.overlay)


def show_serve(screen: Screen, request: Request, target: Checkpoint, draft: str, scheme: Scheme) -> list[str] | None:
    """The server command for a draft (absolute folder or hub id), printed to be copied; its words.

    None, and what has to be done first, where no command serves the target as it is.
    """
    from mtpforge.engines import engine_of
    from mtpforge.report import Trap

    try:
        made = engine_of(request.engine).serve(target, draft, request.serving, scheme)
    except MtpforgeError as error:  # the draft is none the worse for it
        screen.traps((Trap("no-serve-command", "warning", f"{error.what}: {error.why}", error.fix, error.where),))
        return None
    if not screen.quiet:
        for command in made.each:
            screen.line()
            screen.command_line(command.argv)
    return made.argv


def with_keys(ending: Ending, keys: Mapping[str, object]) -> Ending:
    """An ending whose JSON document has more keys."""
    return replace(ending, document={**ending.document, **keys})
