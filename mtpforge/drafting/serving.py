"""The server command of a draft and a target, for pairs that can be served."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mtpforge import errors, traps
from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.drafting import deploying, overlaying
from mtpforge.drafting.request import OnRemark
from mtpforge.engines import engine_of, named
from mtpforge.engines.command import Command
from mtpforge.engines.engine import Serving, own_config, refuse_unknown
from mtpforge.engines.hardware import Deployment, machine_of
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.inspecting import inspect
from mtpforge.nextn import DEEPEST
from mtpforge.report import Trap
from mtpforge.sourcing import has_layer
from mtpforge.verifying import as_served, glance


def serving_command(
    draft: str,
    target: Checkpoint,
    engine: str,
    serving: Serving,
    overlay: Path | None = None,
    deployment: Deployment | None = None,
    on_remark: OnRemark | None = None,
) -> Command:
    """The command, each flag with its reason.

    draft: an absolute folder, or the target's own location to draft with its own layer. overlay: the folder of links
    that stands for the target, made where it is not there yet, which on_remark is told. deployment: the machine that it
    is for. Its traps would spoil the drafts without a word of the engine.
    """
    refuse_unknown(engine_of(engine), serving)
    machine = None if deployment is None else machine_of(deployment)
    if machine is not None and deployment is not None:
        serving = deploying.serving_on(machine, deployment, engine, target, serving)
    held = target if draft == target.location else open_checkpoint(draft)
    doubts = (*_doubts(held, target, engine), *_too_deep(serving))
    traps.refuse_swapped("serve", held, target, family_of(target.config))
    _refuse_whole(held, target, engine)
    target = as_served(held, target, engine_of(engine))
    _refuse_misfit(draft, target, engine, serving)
    if overlay is not None:
        target = overlaying.at(target, engine_of(engine), overlay, on_remark)
    scheme = engine_of(engine).demands(target, own_config(held), family_of(target.config))
    made = replace(engine_of(engine).serve(target, draft, serving, scheme), traps=doubts)
    if machine is None or deployment is None:
        return made
    return deploying.placed(made, machine, deployment, engine, target, scheme, serving)


def _doubts(held: Checkpoint, target: Checkpoint, engine: str) -> tuple[Trap, ...]:
    """What the engine would not say of this pair; what a draft cures is cured by the one that is served."""
    family, is_alone = family_of(target.config), held is target
    found = engine_of(engine).target_traps(target, family)
    silent = (trap for trap in found if trap.silent and trap.severity == "warning")
    warned = tuple(trap for trap in silent if is_alone or not trap.draft_cures)
    others = () if is_alone else traps.of_other_version(target, held, family)
    return (*traps.of_cut_short(target), *others, *warned)


def _too_deep(serving: Serving) -> Iterator[Trap]:
    """More tokens at a time than `fidelity` and `accept` measure: each takes a pass of the layer, few are accepted."""
    if serving.speculative_tokens > DEEPEST:
        said = (
            f"{serving.speculative_tokens} tokens at a time: each takes a pass of the layer, and few so deep are taken"
        )
        fix = f"`-k 3`, as GLM-5.2 is served; `mtpforge accept` measures up to {DEEPEST}"
        yield Trap("deep-drafts", "warning", said, fix, where="option `-k`", silent=True)


def _refuse_whole(held: Checkpoint, target: Checkpoint, engine: str) -> None:
    """Refuse another whole checkpoint in the draft's place: each of its tensors would be a finding."""
    if held.location == target.location or not traps.is_whole(held, family_of(target.config)):
        return
    source = ["--source", held.label] if has_layer(held, family_of(held.config)) else []
    build = shlex.join(["mtpforge", "build", "--target", target.label, *source, *named(engine)])
    raise MtpforgeError(
        "that is a whole checkpoint, no draft",
        where=held.location,
        fix=f"`{build}` makes a draft{' of its layer' if source else ''}",
    )


def _listed(draft: str, target: Checkpoint, engine: str) -> str:
    """The command that has every finding."""
    inspected = ["inspect", target.label]
    words = inspected if draft == target.location else ["verify", draft, "--target", target.label]
    return shlex.join(["mtpforge", *words, *named(engine)])


def _refuse_misfit(draft: str, target: Checkpoint, engine: str, serving: Serving) -> None:
    """Refuse a pair of which configs and headers alone show that the engine would not start, or draft nonsense."""
    if draft == target.location:  # the target's own layer, without a draft
        for trap in traps.only_layer(target, family_of(target.config)):
            raise MtpforgeError(trap.message, where=trap.where, fix=trap.fix)
        report = inspect(target, engine=engine, serving=serving, with_heads=False)
        anew = f"`{' '.join(('mtpforge build --target', shown(target.label), *named(engine)))}`"
        wrong = [replace(check, fix=anew) for check in report.checks if check.verdict != "passed"]
    else:
        report = glance(draft, target, engine=engine, serving=serving)
        wrong = [check for check in report.checks if check.verdict == "failed"]
    errors_found = [trap for trap in report.traps if trap.severity == "error"]
    said = [f"{check.name}: {check.detail}" for check in wrong]
    said += [trap.message for trap in errors_found if not any(trap.message in sentence for sentence in said)]
    fixes = [*(check.fix for check in wrong), *(trap.fix for trap in errors_found)]
    if said:
        raise MtpforgeError(
            "this draft cannot be served with this target",
            where=draft,
            why=said[0]
            + (f"; and {len(said) - 1} more; `{_listed(draft, target, engine)}` lists them" if said[1:] else ""),
            fix=next(filter(None, fixes), ""),
            code=errors.ANSWER_NO,
        )
