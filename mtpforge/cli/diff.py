"""`mtpforge diff`: two layers beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import click

from mtpforge.cli import options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.verify import draft_argument


@click.command(
    "diff",
    cls=Command,
    help="Where two drafts, or a draft and a published layer, differ: config, names, formats, values; exit 1 if so.",
    examples=(
        "mtpforge diff out/draft out/other",
        "mtpforge diff out/draft zai-org/GLM-5.2-FP8 --json",
    ),
    quiet="Only what differs.",
    then="mtpforge verify DRAFT --target CKPT",
)
@draft_argument
@click.argument("other", type=options.CheckpointName(), metavar="OTHER")
@click.pass_obj
def command(screen: Screen, *, draft: str, other: str) -> Ending:  # noqa: D103 -- the help text above
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.comparing import compare

    one, two = (open_checkpoint(name, offline=screen.offline) for name in (draft, other))
    with screen.progress() as on_progress:
        report = compare(one, two, on_progress=on_progress)
    kinds = cast("Sequence[Mapping[str, object]]", report.facts["kinds"])
    rows = [
        (
            f"{row['n']} {row['kind']}",
            str(row["one"]),
            str(row["other"]),
            str(row["differ"]),
            f"{row['median_error']:.3g}",
            f"{row['worst_error']:.3g}",
            str(row["worst"]),
        )
        for row in kinds
    ]
    screen.table(("modules", draft, other, "differ", "median error", "largest", "of"), rows)
    screen.line()
    screen.report(report)
    return Ending({"draft": draft, "other": other, "report": report}, report.exit_code)
