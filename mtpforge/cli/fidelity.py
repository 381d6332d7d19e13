"""`mtpforge fidelity`: does a draft predict what the dense layer predicts, and which module costs what."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import click

from mtpforge.cli import options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.showing import beside
from mtpforge.cli.verify import draft_argument
from mtpforge.units import file_size

if TYPE_CHECKING:
    from mtpforge.judging.fidelity import DraftFidelity, Fidelity
    from mtpforge.nextn.speculating import Recycled

_FEW: Final = 6  # single modules that fit a screen
_STEPS: Final = ("step", "rows", "total variation", "KL", "same token", "states off", "routing", "accepted", "dense")
_SWAPS: Final = ("swapped in alone", "rows", "weights off", "states off", "total variation")
_RANKS: Final = ("draft", "size", "experts", "total variation", "KL", "accepted", "lost", "")


@click.command(
    "fidelity",
    cls=Command,
    help="How far a draft's predictions lie from the dense layer's on the same inputs, and which module costs what."
    " Exit 1 where it is clearly broken.",
    examples=(
        "mtpforge fidelity out/draft --reference zai-org/GLM-5.2 --inputs inputs.safetensors",
        "mtpforge fidelity out/int4 --reference ./GLM-5.2 --inputs in.safetensors --compare out/fp8 --picture p.svg",
    ),
    quiet="A line a draft, nearest first: total variation of the first step, and its name.",
    then="mtpforge validate DRAFT --target CKPT",
)
@draft_argument
@options.reference(required=True)
@options.target(help="Checkpoint that is served: its head and embedding are used; default: the reference's.")
@options.inputs(help="Captured inputs (`mtpforge capture`); without any synthetic ones, which rank nothing.")
@options.tokens(default=2048)
@options.compare()
@options.report()
@options.picture(help="Draw sizes against what is lost (png, svg, pdf); needs `pip install 'mtpforge[plots]'`.")
@options.k()
@options.recycle()
@options.workers()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    draft: str,
    reference: str,
    target: str | None,
    inputs: Path | None,
    tokens: int,
    compare: tuple[str, ...],
    picture: Path | None,
    k: int,
    recycle: str,
    workers: int | None,
) -> Ending:
    from mtpforge.judging.fidelity import Asked, fidelity
    from mtpforge.reporting import drawing

    if picture is not None:
        drawing.refuse(picture)
    asked = Asked(
        drafts=(draft, *compare),
        reference=reference,
        target=target,
        inputs=inputs,
        tokens=tokens,
        k=k,
        recycled=cast("Recycled", recycle),
        workers=workers or os.cpu_count() or 1,
        offline=screen.offline,
    )
    screen.kept = lambda: "the draft is as it was"
    with screen.watching() as watching:
        found = fidelity(asked, watching)
    for each in found.drafts:
        show(screen, found, each)
    if len(found.drafts) > 1:
        screen.line()
        screen.table(_RANKS, [_rank(each) for each in found.ranked])
    if picture is not None:
        from mtpforge.report import plain
        from mtpforge.reporting.judged import size_against_loss
        from mtpforge.reporting.values import At

        screen.result = found.document()
        drawing.save(picture, lambda: size_against_loss(At(plain(found))))
        screen.line(f"wrote   {picture}")
    for each in found.ranked:
        screen.answer(f"{each.steps[0].total_variation:.6f} {each.draft}" if each.steps else f"- {each.draft}")
    report = found.report
    if report.ok and target:
        nearest = found.drafts.index(found.ranked[0])
        screen.next("mtpforge", *beside("validate", (draft, *compare)[nearest], target, offline=screen.offline))
    return Ending({**found.document(), "picture": picture}, report.exit_code)


def show(screen: Screen, found: Fidelity, draft: DraftFidelity) -> None:
    """Steps, kinds, the modules that cost most, and what they come to."""
    from mtpforge.report import Report

    marked = "   synthetic inputs" if found.is_synthetic else ""
    screen.line()
    screen.line(
        f"{draft.draft}   {file_size(draft.n_bytes)}, the dense layer {file_size(found.reference_bytes)}{marked}"
    )
    if draft.steps:
        screen.table(_STEPS, [_step(each) for each in draft.steps])
        bounds = ", ".join(f"{step.total_variation:.4f}" for step in draft.steps)
        screen.line(f"  no target loses more of a step's acceptance on these inputs than {bounds}")
        screen.line()
        kinds = [each for each in draft.swaps if not each.module]
        single = [each for each in draft.swaps if each.module and each.state_error]
        shown = [*kinds, *(single if screen.verbose else single[:_FEW])]
        rows = [
            (s.module or s.kind, s.n_rows, _number(s.weight_error), _number(s.state_error), _number(s.total_variation))
            for s in shown
        ]
        if rows:
            screen.table(_SWAPS, rows)
        else:
            screen.line("  every module is the reference's, value by value: there is nothing to swap in alone")
        screen.line()
    screen.report(Report("fidelity", draft.checks))


def _step(step: object) -> tuple[object, ...]:
    from mtpforge.judging.fidelity import StepFidelity

    s = cast("StepFidelity", step)
    numbers = (
        s.total_variation,
        s.divergence,
        s.agreement,
        s.state_error,
        s.routing,
        s.acceptance,
        s.acceptance_reference,
    )
    return (s.step, s.n_rows, *map(_number, numbers))


def _rank(draft: DraftFidelity) -> tuple[object, ...]:
    size = file_size(draft.n_bytes)
    if not draft.steps:
        return (draft.draft, size, draft.n_experts, "-", "-", "-", "-", "cannot be computed")
    step = draft.steps[0]
    lost = None
    if step.acceptance is not None and step.acceptance_reference is not None:
        lost = step.acceptance_reference - step.acceptance
    numbers = (step.total_variation, step.divergence, step.acceptance, lost)
    return (draft.draft, size, draft.n_experts, *map(_number, numbers), "" if draft.ok else "clearly broken")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
