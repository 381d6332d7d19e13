"""`mtpforge validate`: everything that this machine can check of a draft."""

from __future__ import annotations

from dataclasses import replace

import click

from mtpforge import errors
from mtpforge.cli import options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.verify import draft_argument, folder_of
from mtpforge.errors import MtpforgeError


@click.command(
    "validate",
    cls=Command,
    help="All that this machine can check: verify, then the installed engine's loader. Exit 5 where there is none.",
    examples=(
        "mtpforge validate out/draft --target org/GLM-5.2-AWQ-INT4",
        "mtpforge validate out/draft --target ./GLM-5.2-AWQ-INT4 --engine-python ~/vllm/bin/python",
    ),
    quiet="Only what failed.",
    then="mtpforge serve DRAFT --target CKPT",
)
@draft_argument
@options.target(required=True)
@options.source(help="Compare the values with this checkpoint's layer.")
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
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.engines import ENGINES
    from mtpforge.engines.engine import Serving
    from mtpforge.verifying import as_served, rebuild_advice, verify

    served, serving = open_checkpoint(target, offline=screen.offline), Serving(tp, ep)
    origin = open_checkpoint(source, offline=screen.offline) if source else None
    screen.kept = lambda: "the draft is as it was"
    with screen.progress() as on_progress:
        report = verify(draft, served, origin, engine=engine, serving=serving, on_progress=on_progress)
    # What verify leaves to the engine is answered below, or refused there.
    report = replace(report, checks=tuple(check for check in report.checks if check.name != "loader"))
    screen.report(report)
    document: dict[str, object] = {"draft": draft, "report": report}
    try:
        beside = as_served(open_checkpoint(draft, offline=screen.offline), served, ENGINES[engine])
        loaded = ENGINES[engine].ask(folder_of(draft), beside, serving, engine_python)
    except MtpforgeError as error:
        if error.code != errors.MACHINE:
            raise
        return screen.partly(error, Ending(document, report.exit_code or error.code))
    anew = rebuild_advice(draft, served, origin, engine, serving)
    loaded = replace(loaded, checks=tuple(replace(c, fix=c.fix.format(anew=anew)) for c in loaded.checks))
    screen.report(loaded)
    if report.ok and loaded.ok:
        screen.next("mtpforge", "serve", draft, "--target", target, *options.kept("engine", "tp", "ep"))
    return Ending({**document, "engine": loaded}, report.exit_code or loaded.exit_code)
