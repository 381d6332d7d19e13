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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtpforge.judging.validating import Part


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
    from mtpforge.engines.engine import Serving
    from mtpforge.judging.validating import Asked, parts, refuse_half

    refuse_half(inputs, reference, source)
    asked = Asked(
        draft=draft,
        target=open_served(target, offline=screen.offline),
        source=open_checkpoint(source, offline=screen.offline) if source else None,
        inputs=inputs,
        reference=reference,
        engine=engine,
        serving=Serving(tp, ep),
        python=engine_python,
        workers=os.cpu_count() or 1,
        offline=screen.offline,
    )
    screen.kept = lambda: "the draft is as it was"
    document: dict[str, object] = {"draft": draft}
    codes = []
    with screen.watching() as watching:
        for part in parts(asked, watching):
            ending = _shown(screen, part)
            document = {**ending.document, **document}  # the first error
            screen.result = document  # what was found stays, whatever becomes of the rest
            codes.append(ending.exit_code)
    if not any(codes):
        screen.next("mtpforge", "serve", draft, "--target", target, *options.kept("engine", "tp", "ep"))
    return Ending(document, errors.ANSWER_NO if errors.ANSWER_NO in codes else next(filter(None, codes), errors.DONE))


def _shown(screen: Screen, part: Part) -> Ending:
    """One part on the screen, and what the document holds of it."""
    from mtpforge.cli.fidelity import show

    found: dict[str, object] = {"fidelity": part.found, "predictions": part.report}
    if part.error is not None:
        kept: Mapping[str, object] = found if part.name == "fidelity" else {}
        if part.report.checks[1:]:  # one of two engines was asked
            screen.report(part.report)
            kept = {part.name: part.report}
        return screen.partly(part.error, Ending(kept, part.exit_code))
    if part.found is not None:
        screen.line()
        show(screen, part.found, part.found.drafts[0])
        return Ending(found, part.exit_code)
    screen.report(part.report)
    return Ending({"report" if part.name == "verify" else part.name: part.report}, part.exit_code)
