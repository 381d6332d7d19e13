"""`mtpforge accept`: how many tokens of a draft a target accepts that fits on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from mtpforge.cli import options
from mtpforge.cli.grammar import Command, Option
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.showing import beside
from mtpforge.cli.verify import draft_argument

if TYPE_CHECKING:
    from mtpforge.judging.accepting import Acceptance, DraftAcceptance, Drawn
    from mtpforge.nextn.speculating import Recycled


@click.command(
    "accept",
    cls=Command,
    help="How many tokens of a draft a target accepts, greedily and by rejection sampling, on what it says itself. For"
    " targets that fit into the memory of this machine.",
    examples=(
        "mtpforge accept out/draft --target ./small-GLM --text prompts.txt",
        "mtpforge accept out/bf16 --target ./small-GLM --text prompts.txt --compare out/int4 --compare out/fp8 --k 4",
    ),
    quiet="A line a draft: tokens a cycle by sampling, and its name.",
    then="mtpforge serve DRAFT --target CKPT",
)
@draft_argument
@options.target(required=True, help="Checkpoint that is served: a folder with all of its weights.")
@options.text(required=True)
@options.compare(help="Measure this one too, against the first.")
@click.option(
    "--windows",
    cls=Option,
    type=click.IntRange(min=1),
    metavar="N",
    default=48,
    show_default=True,
    heading="Input",
    help="Prompts, spread over the text; each is one independent measurement.",
)
@options.length(default=192, show_default=True, help="Tokens of a prompt.")
@click.option(
    "--generate",
    cls=Option,
    type=click.IntRange(min=3),
    metavar="N",
    default=128,
    show_default=True,
    heading="Input",
    help="Tokens that the target goes on with.",
)
@click.option(
    "--temperature",
    cls=Option,
    type=float,
    metavar="T",
    default=1.0,
    show_default=True,
    heading="Compute",
    help="Of the sampling of both.",
)
@options.report()
@options.k()
@options.recycle()
@options.workers()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    draft: str,
    target: str,
    text: Path,
    compare: tuple[str, ...],
    windows: int,
    length: int,
    generate: int,
    temperature: float,
    k: int,
    recycle: str,
    workers: int | None,
) -> Ending:
    from mtpforge.judging.accepting import Asked, accept

    asked = Asked(
        drafts=(draft, *compare),
        target=target,
        text=text,
        windows=windows,
        length=length,
        generate=generate,
        temperature=temperature,
        k=k,
        recycled=cast("Recycled", recycle),
        workers=workers or os.cpu_count() or 1,
        offline=screen.offline,
    )
    screen.kept = lambda: "the drafts are as they were"
    with screen.watching() as watching:
        found = accept(asked, watching)
    _show(screen, found)
    for each in found.drafts:
        screen.answer(f"{each.sampled.tokens.mean:.4f} {each.draft}")
    report = found.report
    screen.report(report)
    best = max(range(len(found.drafts)), key=lambda n: found.drafts[n].sampled.tokens.mean)
    screen.next("mtpforge", *beside("serve", (draft, *compare)[best], target, "--print", offline=screen.offline))
    return Ending(found.document(), report.exit_code)


def _show(screen: Screen, found: Acceptance) -> None:
    """A table for each way to go on; then what no draft can fall below."""
    for name, about in (("sampled", f"sampled at temperature {found.temperature:g}"), ("greedy", "greedy")):
        screen.line()
        one = found.n_windows == 1  # which has no interval
        screen.line(f"{about}, " + ("1 window" if one else f"95 % intervals over {found.n_windows} windows"))
        steps = [f"token {number}" for number in range(1, found.k + 1)]
        columns = ("draft", *steps, "tokens a cycle", "against the first")
        screen.table(columns, [_row(draft, getattr(draft, name)) for draft in found.drafts])
    screen.line()
    first = found.drafts[0].sampled.positions[0].mean
    for draft in found.drafts[1:]:
        far = draft.sampled.variation or 0.0
        least = f"{first:.4f} - {far:.4f} = {first - far:.4f}"
        screen.line(f"  {draft.draft}: at least {least} of its first tokens are accepted: less its total variation")


def _row(draft: DraftAcceptance, drawn: Drawn) -> tuple[object, ...]:
    return (draft.draft, *map(str, drawn.positions), str(drawn.tokens), str(drawn.against_first or ""))
