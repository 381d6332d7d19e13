"""`mtpforge serve`: the exact server command, printed or run."""

from __future__ import annotations

import os
import shutil

import click

from mtpforge import errors
from mtpforge.cli import options
from mtpforge.cli.grammar import Command, Option
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.verify import draft_argument, folder_of
from mtpforge.errors import MtpforgeError
from mtpforge.report import Trap


@click.command(
    "serve",
    cls=Command,
    help="Run the server with this draft beside this target, with every flag that the pair needs.",
    examples=(
        "mtpforge serve out/draft --target org/GLM-5.2-AWQ-INT4 --print",
        "mtpforge serve out/draft --target ./GLM-5.2-AWQ-INT4 --tp 8",
    ),
)
@draft_argument
@options.target(required=True)
@options.engine()
@click.option(
    "--print", "only_print", cls=Option, heading="Output", is_flag=True, help="Print the command, run nothing."
)
@options.tp()
@options.ep()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen, *, draft: str, target: str, engine: str, only_print: bool, tp: int, ep: bool
) -> Ending:
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.engines import ENGINES
    from mtpforge.engines.engine import Serving

    served, judge = open_checkpoint(target, offline=screen.offline), ENGINES[engine]
    path = str(folder_of(draft).absolute())
    _refuse(judge.path_traps(path))
    argv = judge.serve(served, path, Serving(tp, ep))
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


def _refuse(traps: tuple[Trap, ...]) -> None:
    for trap in traps:
        if trap.severity == "error":
            raise MtpforgeError(trap.message, where=trap.where, fix=trap.fix)


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
