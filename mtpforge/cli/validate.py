"""`mtpforge validate`: everything that this machine can check of a draft."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtpforge import errors
from mtpforge.cli import options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.verify import draft_argument
from mtpforge.errors import MtpforgeError

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint


@click.command(
    "validate",
    cls=Command,
    help="All that this machine can check: verify, the installed engine's loader, a forward pass by it where a GPU is,"
    " and with --inputs fidelity. Exit 5 where there is no engine.",
    examples=(
        "mtpforge validate out/draft --target ./GLM-5.2-AWQ-INT4 --engine-python ~/serving/bin/python",
        "mtpforge validate out/draft --target ./GLM-5.2-AWQ-INT4 --inputs in.safetensors --reference zai-org/GLM-5.2",
    ),
    quiet="Only what failed.",
    then="mtpforge serve DRAFT --target CKPT",
)
@draft_argument
@options.target(required=True)
@options.source(help="Compare the values with this checkpoint's layer.")
@options.inputs(help="Captured inputs (`mtpforge capture`): run fidelity on them too, engine or none.")
@options.reference(help="Checkpoint whose layer is fidelity's measure, the dense one; default: the source.")
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
    inputs: Path | None,
    reference: str | None,
    engine: str,
    engine_python: str | None,
    tp: int,
    ep: bool,
) -> Ending:
    from mtpforge.checkpoint import open_checkpoint, open_served
    from mtpforge.drafting.validating import folder_of, loaded, verified
    from mtpforge.engines.child import refuse_no_program
    from mtpforge.engines.engine import Serving
    from mtpforge.judging import engine_pass
    from mtpforge.judging.within_validate import refuse_half

    refuse_half(inputs, reference, source)
    served, serving = open_served(target, offline=screen.offline), Serving(tp, ep)
    origin = open_checkpoint(source, offline=screen.offline) if source else None
    screen.kept = lambda: "the draft is as it was"
    with screen.progress() as on_progress:
        report = verified(draft, served, origin, engine, serving, on_progress)
    screen.report(report)
    document: dict[str, object] = {"draft": draft, "report": report}
    screen.result = document  # what was found stays, whatever becomes of the rest
    try:
        refuse_no_program(engine_python)
        answer = engine_pass.beside(
            loaded(draft, served, origin, engine, serving, engine_python),
            lambda: engine_pass.engine_pass(
                folder_of(draft), served, engine, serving, engine_python, os.cpu_count() or 1
            ),
        )
    except MtpforgeError as error:
        if error.code != errors.MACHINE:
            raise
        asked = screen.partly(error, Ending({}, error.code))
    else:
        screen.report(answer)
        asked = Ending({"engine": answer}, answer.exit_code)
    endings = [Ending(document, report.exit_code), asked]
    screen.result = {**asked.document, **document}
    if inputs is not None:
        endings.append(_fidelity(screen, draft, reference or source or "", served, inputs))
    codes = [ending.exit_code for ending in endings]
    if not any(codes):
        screen.next("mtpforge", "serve", draft, "--target", target, *options.kept("engine", "tp", "ep"))
    whole = {key: value for ending in reversed(endings) for key, value in ending.document.items()}  # the first error
    return Ending(whole, errors.ANSWER_NO if errors.ANSWER_NO in codes else next(filter(None, codes), errors.DONE))


def _fidelity(screen: Screen, draft: str, reference: str, served: Checkpoint, inputs: Path) -> Ending:
    """Both layers on the inputs, shown as `fidelity` shows it."""
    from mtpforge.cli.fidelity import show
    from mtpforge.judging.within_validate import predictions

    screen.line()
    with screen.watching() as watching:
        made = predictions(
            *(draft, reference, served, inputs, watching),
            workers=os.cpu_count() or 1,
            offline=screen.offline,
        )
    ending = Ending(made.document(), made.exit_code)
    if made.error is not None:
        return screen.partly(made.error, ending)
    if made.found is not None:
        show(screen, made.found, made.found.drafts[0])
    return ending
