"""`mtpforge verify`: opens a draft as a stranger would and judges it."""

from __future__ import annotations

import click

from mtpforge.cli import options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen

draft_argument = click.argument("draft", type=options.CheckpointName(), metavar="DRAFT")


@click.command(
    "verify",
    cls=Command,
    help="Judge a draft beside its target: files, names, shapes, values, config. Needs no engine and takes seconds.",
    examples=(
        "mtpforge verify out/draft --target org/GLM-5.2-AWQ-INT4",
        "mtpforge verify out/draft --target ./GLM-5.2-AWQ-INT4 --source zai-org/GLM-5.2-FP8",
    ),
    quiet="Only what failed.",
    then="mtpforge validate DRAFT --target CKPT",
)
@draft_argument
@options.target(required=True)
@options.source(help="Compare the values with this checkpoint's layer.")
@options.report()
@options.scheme(help="Judge by this preset or file instead of the target's own scheme.")
@options.engine()
@options.tp()
@options.ep()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    draft: str,
    target: str,
    source: str | None,
    scheme: str | None,
    engine: str,
    tp: int,
    ep: bool,
) -> Ending:
    from mtpforge import scheme as schemes
    from mtpforge.checkpoint import open_checkpoint, open_served
    from mtpforge.engines.engine import Serving
    from mtpforge.publishing.again import verify

    served = open_served(target, offline=screen.offline)
    origin = open_checkpoint(source, offline=screen.offline) if source else None
    screen.kept = lambda: "the draft is as it was"
    with screen.progress() as on_progress:
        report = verify(
            draft,
            served,
            origin,
            engine=engine,
            serving=Serving(tp, ep),
            scheme=schemes.load(scheme) if scheme else None,
            on_progress=on_progress,
        )
    screen.report(report)
    if report.ok:
        kept = options.kept("source", "engine", "tp", "ep")
        screen.next("mtpforge", "validate", draft, "--target", target, *kept)
    return Ending({"draft": draft, "report": report}, report.exit_code)
