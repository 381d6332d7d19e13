"""`mtpforge validate`: everything that this machine can check of a draft."""

from __future__ import annotations

import click

from mtpforge import errors
from mtpforge.cli import options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.verify import draft_argument
from mtpforge.errors import MtpforgeError


@click.command(
    "validate",
    cls=Command,
    help="All that this machine can check: verify, then the installed engine's loader. Exit 5 where there is none.",
    examples=(
        "mtpforge validate out/draft --target org/GLM-5.2-AWQ-INT4",
        "mtpforge validate out/draft --target ./GLM-5.2-AWQ-INT4 --engine-python ~/serving/bin/python",
    ),
    quiet="Only what failed.",
    then="mtpforge serve DRAFT --target CKPT",
)
@draft_argument
@options.target(required=True)
@options.source(help="Compare the values with this checkpoint's layer.")
@options.report()
@options.engine()
@options.engine_python()
@options.tp()
@options.ep()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    draft: str,
    target: str,
    source: str | None,
    engine: str,
    engine_python: str | None,
    tp: int,
    ep: bool,
) -> Ending:
    from mtpforge.checkpoint import open_checkpoint, open_served
    from mtpforge.drafting.validating import loaded, verified
    from mtpforge.engines.engine import Serving
    from mtpforge.engines.installed import refuse_no_program

    refuse_no_program(engine_python)
    served, serving = open_served(target, offline=screen.offline), Serving(tp, ep)
    origin = open_checkpoint(source, offline=screen.offline) if source else None
    screen.kept = lambda: "the draft is as it was"
    with screen.progress() as on_progress:
        report = verified(draft, served, origin, engine, serving, on_progress)
    screen.report(report)
    document: dict[str, object] = {"draft": draft, "report": report}
    try:
        answer = loaded(draft, served, origin, engine, serving, engine_python)
    except MtpforgeError as error:
        if error.code != errors.MACHINE:
            raise
        return screen.partly(error, Ending(document, report.exit_code or error.code))
    screen.report(answer)
    if report.ok and answer.ok:
        screen.next("mtpforge", "serve", draft, "--target", target, *options.kept("engine", "tp", "ep"))
    return Ending({**document, "engine": answer}, report.exit_code or answer.exit_code)
