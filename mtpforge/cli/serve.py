"""`mtpforge serve`: the exact server command, printed or run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtpforge import errors
from mtpforge.cli import options
from mtpforge.cli.grammar import Command, Option
from mtpforge.cli.making import with_keys
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.verify import draft_argument
from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from mtpforge.engines.command import Command as ServerCommand


class DraftOption(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases of click
    """`KEY=VALUE`, the value as JSON or a plain word."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, object]:  # noqa: ANN401, ARG002
        """The key and its value."""
        if isinstance(value, tuple):
            return value
        key, sign, word = str(value).partition("=")
        if not sign:
            raise MtpforgeError(
                f"`{shown(value)}` gives no value",
                where="option `--draft-option`",
                fix=f"`--draft-option {shown(key)}=VALUE`; `--explain` offers keys and values",
                code=errors.USAGE,
            )
        try:
            return key, json.loads(word)
        except ValueError:
            return key, word


@click.command(
    "serve",
    cls=Command,
    help="Run the server with this draft beside this target, with every flag that the pair needs.",
    examples=(
        "mtpforge serve out/draft --target org/GLM-5.2-AWQ-INT4 --explain",
        "mtpforge serve out/draft --target ./GLM-5.2-AWQ-INT4 --hardware h200-x8 -k 5 -- --max-model-len 65536",
    ),
    quiet="Only the command.",
)
@draft_argument
@options.target(required=True)
@options.engine()
@options.overlay()
@click.option(
    "--print", "only_print", cls=Option, heading="Output", is_flag=True, help="Print the command, run nothing."
)
@click.option(
    "--explain",
    cls=Option,
    heading="Output",
    is_flag=True,
    help="Print the command, why each flag is there, and what would make drafting cheaper; run nothing.",
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
    "--draft-option",
    "draft_options",
    type=DraftOption(),
    multiple=True,
    cls=Option,
    heading="Compute",
    metavar="KEY=VALUE",
    help="A key of the engine's for cheaper drafts, as `--explain` offers it; may be repeated.",
)
@click.option(
    "--hardware",
    cls=Option,
    heading="Compute",
    metavar="MACHINE",
    help="Where it is served, as `spark-x4` or `h200-x8`: ranks, flags and variables for that.",
)
@click.option("--fork", cls=Option, heading="Compute", metavar="NAME", help="Give a patched engine its flags, too.")
@click.option(
    "--node-rank",
    cls=Option,
    heading="Compute",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Which node of several the command is for; 0 answers requests.",
)
@click.option("--head-node", cls=Option, heading="Compute", metavar="ADDRESS", help="Where node 0 is reached.")
@click.option(
    "--port", cls=Option, heading="Compute", type=click.IntRange(1, 65535), metavar="N", help="Port of the server."
)
@options.tp(default=None, show_default="1, or the machine's")
@options.ep()
@options.kv_cache_dtype()
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE OPTIONS]")
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    draft: str,
    target: str,
    engine: str,
    overlay: Path | None,
    only_print: bool,
    explain: bool,
    tokens: int,
    port: int | None,
    hardware: str | None,
    fork: str | None,
    node_rank: int,
    head_node: str | None,
    tp: int | None,
    ep: bool,
    kv_cache_dtype: str,
    draft_options: tuple[tuple[str, object], ...],
    more: tuple[str, ...],
) -> Ending:
    from mtpforge.checkpoint import open_served
    from mtpforge.drafting.serving import serving_command
    from mtpforge.drafting.validating import folder_of
    from mtpforge.engines.engine import Serving
    from mtpforge.engines.hardware import deployment, ranks

    served = open_served(target, offline=screen.offline)
    path = served.location if _is_same(draft, target) else str(folder_of(draft).absolute())
    _refuse_strays(screen.argv, more)
    asked = deployment(hardware or "", fork or "", node_rank, head_node or "")
    serving = Serving(ranks(asked, tp), ep, tokens, {}, port, kv_cache_dtype, dict(draft_options))
    made = serving_command(path, served, engine, serving, overlay, asked, screen.remark)
    _refuse_two_servers(made, more, is_run=not (explain or only_print))
    _refuse_twice(made.argv, more)
    argv = [*made.argv, *more]
    screen.traps(made.traps)
    if path != served.location:  # a draft
        judge = shlex.join(["mtpforge", "verify", draft, "--target", target, *options.kept("engine", "tp", "ep")])
        screen.note(f"note: no weight was read; `{judge}` reads them all")
    if explain:
        return with_keys(_explained(screen, made, argv), {"traps": made.traps})
    if only_print:
        screen.command_line(argv)
        for other in made.each[1:]:
            screen.command_line(other.argv)
        return Ending({"serve": argv, "traps": made.traps, **_beside(made)})
    if screen.json:
        raise MtpforgeError(
            "`--json` would have nothing to say while a server runs",
            where="option `--json`",
            fix="`--print --json` gives the command as data",
            code=errors.USAGE,
        )
    return _replace_process(screen, argv, made.start[0])


def _explained(screen: Screen, made: ServerCommand, argv: list[str]) -> Ending:
    """The command, then why each of its flags is there, then what could be added."""
    from mtpforge.engines.command import COLUMNS

    screen.command_line(argv)
    screen.line()
    screen.table(COLUMNS, made.rows)
    if made.offers:
        screen.line()
        screen.table(("could be added", "what for, and who decides"), made.offered)
    for other in made.each[1:]:
        screen.line()
        screen.command_line(other.argv)
        screen.line()
        screen.table(COLUMNS, other.rows)
    return Ending({"serve": argv, "flags": made.flags, "offers": made.offers, **_beside(made)})


def _beside(made: ServerCommand) -> dict[str, object]:
    """The other engine's command as data, where both were asked for."""
    return {} if made.beside is None else {"beside": {"serve": made.beside.argv, "flags": made.beside.flags}}


def _refuse_two_servers(made: ServerCommand, more: tuple[str, ...], *, is_run: bool) -> None:
    """One engine runs, and takes words of its own; two are only told."""
    if made.beside is None or not (is_run or more):
        return
    raise MtpforgeError(
        "two engines were asked for, and one server is run at a time",
        where="option `--engine`" if is_run else "behind `--`",
        fix="`--print` shows both commands; name one engine to run its own",
        code=errors.USAGE,
    )


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
                fix="`-k`, `--tp`, `--ep`, `--kv-cache-dtype`, `--draft-option` and `--port` set what mtpforge writes;"
                " else edit what `--print` shows",
                code=errors.USAGE,
            )


def _is_same(draft: str, target: str) -> bool:
    """Whether both name one place: the target is to draft with a layer of its own."""
    is_here = os.path.exists(target)  # noqa: PTH110 -- Path's raises for a name that is too long
    return draft == target or (is_here and Path(draft).resolve() == Path(target).resolve())


def _replace_process(screen: Screen, argv: list[str], engine: str) -> Ending:
    """Become the server: signals, output and exit code are its own. engine: its program, which must be here."""
    program = shutil.which(argv[0])
    if program is None or shutil.which(engine) is None:
        raise MtpforgeError(
            f"`{engine}` is not installed here",
            why="no such program on PATH",
            fix="`--print` shows the command, to be run where the engine is",
            code=errors.MACHINE,
        )
    screen.command_line(argv)
    screen.flush()
    os.execv(program, argv)  # noqa: S606 -- the program that was asked for
