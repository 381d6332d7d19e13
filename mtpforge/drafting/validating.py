"""validate: what verify finds of a draft, then what the engine's own loader says of it."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

from mtpforge import errors
from mtpforge.checkpoint import Named, open_checkpoint, refuse_below_a_folder
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import engine_of
from mtpforge.engines.engine import Serving
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.report import OnProgress, Report
from mtpforge.traps import refuse_swapped
from mtpforge.verifying import as_served, rebuild_advice, verify


def verified(
    draft: str,
    target: Checkpoint,
    source: Checkpoint | None,
    engine: str,
    serving: Serving,
    on_progress: OnProgress | None = None,
) -> Report:
    """What verify finds, but for what it leaves to the engine: that is answered by `loaded`, or refused there."""
    refuse_swapped("validate", open_checkpoint(draft), target, family_of(target.config))
    report = verify(draft, target, source, engine=engine, serving=serving, on_progress=on_progress)
    return replace(report, checks=tuple(check for check in report.checks if check.name != "loader"))


def serving_fix(found: Report) -> str:
    """What to type where a draft cannot be served so, on so many ranks; "" where it can. found: by verify."""
    failed = [check.detail for check in found.checks if check.name == "serving" and check.verdict == "failed"]
    told = (trap.fix for trap in found.traps if trap.severity == "error" and any(trap.message in why for why in failed))
    return next(filter(None, told), "")


def loaded(
    draft: str,
    target: Checkpoint,
    source: Checkpoint | None,
    engine: str,
    serving: Serving,
    python: str | None,
    instead: str = "",
) -> Report:
    """What the loader says, asked in the interpreter `python`, None for this one. Code 5 where there is no engine.

    instead: what to do about a refusal, where that is known; else the draft is made anew.
    """
    folder, judge = folder_of(draft), engine_of(engine)
    report = judge.ask(folder, as_served(open_checkpoint(folder), target, judge), serving, python)
    anew = instead or rebuild_advice(draft, target, source, engine, serving)
    return replace(report, checks=tuple(replace(c, fix=c.fix.format(anew=anew)) for c in report.checks))


def folder_of(given: Named) -> Path:
    """The draft's folder: engines read files, so a hub repository has to be downloaded first."""
    draft = os.fspath(given) if isinstance(given, str | os.PathLike) else given.location
    path = Path(os.path.expanduser(draft))  # noqa: PTH111 -- Path's raises where nobody is called so
    is_there = os.path.exists(path)  # noqa: PTH110 -- Path's raises for a name that is too long
    if is_there and path.is_dir():
        return path
    name, _, revision = draft.partition("@")
    if draft.startswith((".", "~", "/")) or name.count("/") != 1 or is_there:
        raise MtpforgeError(
            f"`{shown(draft)}` is no folder",
            where=shown(path.absolute()),
            why="it is a file" if is_there else "there is no such folder",
            fix="give the draft's folder, as `mtpforge build` printed it",
        )
    refuse_below_a_folder(draft)
    download = shlex.join(["hf", "download", name, *(["--revision", revision] if revision else [])])
    places = ("out/draft", *(f"out/draft-{number}" for number in range(2, 100)))
    place = next((place for place in places if not os.path.lexists(place)), "DIR")  # over no draft that is there
    raise MtpforgeError(
        f"`{shown(draft)}` is no folder",
        why="the engine needs the draft's files on this machine",
        fix=f"`{shown(download)} --local-dir {place}`, then name `{place}`",
        code=errors.MACHINE,
    )
