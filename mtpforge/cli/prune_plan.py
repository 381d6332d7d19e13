"""`mtpforge prune-plan`: which experts would stay beside a smaller target, by which scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import click

from mtpforge.cli import options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen

if TYPE_CHECKING:
    from mtpforge.drafting.request import Count
    from mtpforge.pruning.expert_choice import Comparison

_FEW: Final = 32  # experts whose scores fit a screen


def _methods() -> Sequence[str]:
    from mtpforge.pruning import METHODS

    return tuple(name for name, method in METHODS.items() if method.needs in ("router", "experts"))


@click.command(
    "prune-plan",
    cls=Command,
    help="Which experts a draft would keep beside this target, by which scores, and how far the methods agree.",
    examples=(
        "mtpforge prune-plan --target org/GLM-5.2-REAP-168 --source zai-org/GLM-5.2-FP8",
        "mtpforge prune-plan --target ./GLM-5.2-218 --compare aimer --picture scores.png -q > keep.json",
    ),
    quiet="Only the experts to keep, as a JSON list.",
    then="mtpforge build --target CKPT --keep-experts keep.json",
)
@options.target(required=True)
@options.source(help="Checkpoint that the layer comes from; default: the target, else its base model.")
@options.report()
@options.picture(help="Draw the scores and the cut (png, svg, pdf); needs `pip install 'mtpforge[plots]'`.")
@options.engine()
@options.experts()
@options.prune_by()
@options.inputs()
@options.keep_experts()
@options.compare(
    type=options.Compared("METHOD", _methods),
    help="Show this method too; bias and router-norm always are, aimer reads every expert.",
)
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    target: str,
    source: str | None,
    engine: str,
    picture: Path | None,
    experts: int | str,
    prune_by: str | None,
    inputs: Path | None,
    keep_experts: str | None,
    compare: tuple[str, ...],
) -> Ending:
    from mtpforge.drafting.deciding import compare as compared
    from mtpforge.drafting.request import Request
    from mtpforge.pruning import METHODS
    from mtpforge.reporting import drawing

    if picture is not None:
        drawing.refuse(picture)
    request = Request(
        target=target,
        source=source,
        engine=engine,
        experts=cast("Count", experts),
        prune_by=prune_by or "",
        keep_experts=keep_experts,
        inputs=inputs,
        offline=screen.offline,
    )
    with screen.watching() as watching:
        found = compared(request, compare, watching)
    _show(screen, found)
    if picture is not None:
        from mtpforge.reporting import charts
        from mtpforge.reporting.chosen import titles

        screen.result = found.document()
        drawing.save(picture, lambda: charts.experts(found.scores, found.choices, titles(tuple(found.scores))))
        screen.line(f"wrote   {picture}")
    screen.answer(json.dumps(found.chosen.kept))
    given = options.kept("source", "engine", "experts")
    by = ["--keep-experts", keep_experts] if keep_experts else ["--prune-by", found.chosen.method]
    by += ["--inputs", str(inputs)] if METHODS[found.chosen.method].needs == "inputs" else []
    screen.next("mtpforge", "build", "--target", target, *given, *by)
    return Ending({**found.document(), "picture": picture})


def _show(screen: Screen, found: Comparison) -> None:
    """The list, the methods and their cuts, what they agree on; every score where there are few, or with `-v`."""
    chosen = found.chosen
    if chosen.keeps_all:
        screen.line(f"experts all {chosen.n_stored} stay")
    else:
        screen.line(f"kept    {ranges(chosen.kept)}")
    screen.line()
    screen.table(("method", "scores", "drops", "of these"), _methods_table(found))
    if not chosen.keeps_all:
        screen.line()
        names = list(found.agreement)
        n_gone = chosen.n_stored - len(chosen.kept)
        rows = [(one, *(found.agreement[one][other] for other in names)) for one in names]
        screen.table((f"of {n_gone} dropped, in common", *names), rows)
    if screen.verbose or chosen.n_stored <= _FEW:
        screen.line()
        screen.table(("expert", *found.scores, ""), _experts_table(found))


def _methods_table(found: Comparison) -> list[tuple[str, str, str, str]]:
    from mtpforge.pruning import METHODS

    return [
        (name, f"{_score(min(values))} to {_score(max(values))}", METHODS[name].drops, METHODS[name].what)
        for name, values in found.scores.items()
    ]


def _experts_table(found: Comparison) -> list[tuple[object, ...]]:
    """A row an expert; a score whose method would drop the expert is in brackets."""
    rows: list[tuple[object, ...]] = []
    for number in range(found.chosen.n_stored):
        cells = [
            _score(values[number]) if number in found.choices[name] else f"({_score(values[number])})"
            for name, values in found.scores.items()
        ]
        rows.append((number, *cells, "kept" if number in found.chosen.kept else "dropped"))
    return rows


def _score(value: float) -> str:
    """Counts as whole numbers, everything else with four digits."""
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"


def ranges(numbers: Sequence[int]) -> str:
    """`0-3, 5, 8-9`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
