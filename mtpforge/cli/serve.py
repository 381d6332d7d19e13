"""`mtpforge serve`: the exact server command, printed or run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from mtpforge import errors
from mtpforge.cli import options
from mtpforge.cli.grammar import Command, Option
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.verify import draft_argument, folder_of
from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint
    from mtpforge.engines.engine import Serving

_SAID: Final = 3  # findings that are spelled out; `verify` has them all


@click.command(
    "serve",
    cls=Command,
    help="Run the server with this draft beside this target, with every flag that the pair needs.",
    examples=(
        "mtpforge serve out/draft --target org/GLM-5.2-AWQ-INT4 --print",
        "mtpforge serve out/draft --target ./GLM-5.2-AWQ-INT4 --tp 8 -k 5 -- --max-model-len 65536",
    ),
)
@draft_argument
@options.target(required=True)
@options.engine()
@click.option(
    "--print", "only_print", cls=Option, heading="Output", is_flag=True, help="Print the command, run nothing."
)
@click.option(
    "-k",
    "tokens",
    cls=Option,
    heading="Compute",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Tokens that the draft proposes at a time.",
)
@click.option(
    "--port", cls=Option, heading="Compute", type=click.IntRange(1, 65535), metavar="N", help="Port of the server."
)
@options.tp()
@options.ep()
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE OPTIONS]")
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    draft: str,
    target: str,
    engine: str,
    only_print: bool,
    tokens: int,
    port: int | None,
    tp: int,
    ep: bool,
    more: tuple[str, ...],
) -> Ending:
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.engines import ENGINES
    from mtpforge.engines.engine import Serving

    served = open_checkpoint(target, offline=screen.offline)
    path = served.location if _is_same(draft, target) else str(folder_of(draft).absolute())
    serving = Serving(tp, ep, tokens, port=port)
    _refuse_strays(screen.argv, more)
    _refuse_misfit(path, served, engine, serving)
    argv = ENGINES[engine].serve(served, path, serving)
    _refuse_twice(argv, more)
    argv += more
    if only_print:
        screen.command_line(argv)
        return Ending({"serve": argv})
    if screen.json:
        raise MtpforgeError(
            "`--json` would have nothing to say while a server runs",
            where="option `--json`",
            fix="`--print --json` gives the command as data",
            code=errors.USAGE,
        )
    return _replace_process(screen, argv)


def _refuse_strays(typed: tuple[str, ...], more: tuple[str, ...]) -> None:
    """Only what stands behind `--` is the engine's; anything else was meant for us."""
    behind = typed[typed.index("--") + 1 :] if "--" in typed else ()
    if more and more != behind:
        raise MtpforgeError(
            f"`{shown(more[0])}` is one argument too many",
            why="one DRAFT is served; what is for the engine stands behind `--`",
            fix=f"`mtpforge serve DRAFT --target CKPT -- {shown(more[0])}` hands it on",
            code=errors.USAGE,
        )


def _refuse_twice(argv: list[str], more: tuple[str, ...]) -> None:
    """An option that the command has already: the pair may need its value."""
    ours = {word for word in argv if word.startswith("--")}
    for word in more:
        name = word.partition("=")[0]
        if name in ours:
            raise MtpforgeError(
                f"`{name}` is in the command already",
                where="behind `--`",
                why="engines take the last of two without a word",
                fix="`-k`, `--tp`, `--ep` and `--port` set what mtpforge writes; else edit what `--print` shows",
                code=errors.USAGE,
            )


def _is_same(draft: str, target: str) -> bool:
    """Whether both name one place: the target is to draft with a layer of its own."""
    return draft == target or (Path(target).exists() and Path(draft).resolve() == Path(target).resolve())


def _refuse_misfit(draft: str, target: Checkpoint, engine: str, serving: Serving) -> None:
    """Refuse a pair of which configs and headers alone show that the engine would not start, or draft nonsense."""
    from mtpforge.inspecting import inspect
    from mtpforge.verifying import glance

    if draft == target.location:  # the target's own layer, without a draft
        report = inspect(target, engine=engine, serving=serving)
        wrong = [check for check in report.checks if check.verdict != "passed"]
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
            why="; ".join(said[:_SAID]) + (f"; and {len(said) - _SAID} more" if len(said) > _SAID else ""),
            fix=next(filter(None, fixes), ""),
            code=errors.ANSWER_NO,
        )


def _replace_process(screen: Screen, argv: list[str]) -> Ending:
    """Become the server: signals, output and exit code are its own."""
    program = shutil.which(argv[0])
    if program is None:
        raise MtpforgeError(
            f"`{argv[0]}` is not installed here",
            why="no such program on PATH",
            fix="`--print` shows the command, to be run where the engine is",
            code=errors.MACHINE,
        )
    screen.command_line(argv)
    screen.flush()
    os.execv(program, argv)  # noqa: S606 -- the program that was asked for
