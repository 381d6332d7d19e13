"""The command line: the table of commands, each loaded when it is asked for, and main()."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from typing import Final

import click

from mtpforge import errors
from mtpforge.cli import failing, streams
from mtpforge.cli.grammar import Option, general_options, say, suggestion, write_options
from mtpforge.cli.output import Ending, Screen
from mtpforge.errors import MtpforgeError, shown

_COMPLETE: Final = "_MTPFORGE_COMPLETE"  # set by the shell's completion script


@dataclass(frozen=True, slots=True)
class Entry:
    """One command: its name, which is also its module in this folder (`-` as `_`), its heading, and what it does."""

    name: str
    heading: str
    help: str


COMMANDS: Final = (
    Entry("inspect", "Make a draft", "what a checkpoint holds, and what a draft for it must be"),
    Entry("build", "Make a draft", "make a draft that fits the target; `--dry-run` is the plan"),
    Entry("extract", "Make a draft", "the layer on its own, in BF16 or by a scheme"),
    Entry("schemes", "Make a draft", "list, explain, or derive a scheme"),
    Entry("prune-plan", "Make a draft", "which experts would stay beside a smaller target, by which scores"),
    Entry("capture", "Make a draft", "calibration inputs: what a target hands to its MTP layer for a text"),
    Entry("verify", "Prove it", "files, names, values, config; in seconds"),
    Entry("validate", "Prove it", "verify, and the loader of the installed engine"),
    Entry("fidelity", "Prove it", "does it predict what the dense layer predicts; which module costs what"),
    Entry("accept", "Prove it", "how many of its tokens a target accepts that fits on this machine"),
    Entry("bench", "Prove it", "what drafting is worth on a live server: acceptance, speed, which depth"),
    Entry("diff", "Prove it", "two drafts, or a draft and a published layer"),
    Entry("serve", "Put it to work", "the exact server command; runs it unless `--print`"),
    Entry("graft", "Put it to work", "a copy of the target with the layer inside, by links"),
    Entry("delta", "Put it to work", "only what a graft adds, for publishing"),
    Entry("merge", "Put it to work", "modules of several checkpoints under one config"),
    Entry("card", "Put it to work", "the model card of a draft"),
    Entry("push", "Put it to work", "a draft to the hub, with its card"),
    Entry("doctor", "This machine", "versions of everything that matters"),
    Entry("demo", "This machine", "a build in seconds, offline"),
    Entry("completion", "This machine", "the completion script of a shell"),
)


class Commands(click.Group):
    """The group of all commands. A command's module is imported when the command is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names, in the order of the table."""
        return [entry.name for entry in COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of that name, or None."""
        if not any(entry.name == cmd_name for entry in COMMANDS):
            return None
        found = import_module(f"mtpforge.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(found, click.Command)  # noqa: S101 -- ours
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name, command and its arguments. An unknown name is an error that names the nearest."""
        name, *rest = args
        found = self.get_command(ctx, name)
        if found is None:
            raise MtpforgeError(
                f"no such command `{shown(name)}`",
                fix=suggestion(name, self.list_commands(ctx)) or "`mtpforge --help` lists the commands",
                code=errors.USAGE,
            )
        if isinstance(ctx.obj, Screen):
            ctx.obj.command = name
        return name, found, rest

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, one sentence, examples, commands by heading, options, exit codes."""
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text(self.help or "")
        with formatter.section("Examples"):
            formatter.write_text("mtpforge demo")
            formatter.write_text("mtpforge build --target org/GLM-5.2-AWQ-INT4 --dry-run")
        for heading, entries in groupby(COMMANDS, key=lambda entry: entry.heading):
            with formatter.section(heading):
                formatter.write_dl([(entry.name, entry.help) for entry in entries], col_spacing=4)
        write_options(self.get_params(ctx), ctx, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in errors.EXIT_CODES.items()])
        formatter.write("\nNext: mtpforge COMMAND --help\n")


def group() -> Commands:
    """The command `mtpforge`, with every sub-command behind it."""
    return Commands(
        "mtpforge",
        help="Build, prove and serve MTP draft layers of GLM models, in the scheme that a quantized target asks for.",
        params=[
            Option(
                ["-V", "--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_version,
                help="Versions of mtpforge and of what it stands on.",
            ),
            *general_options("Only what a script wants: the help of a command says what that is."),
        ],
        add_help_option=False,
        context_settings={"auto_envvar_prefix": "MTPFORGE", "max_content_width": 120},
        subcommand_metavar="COMMAND ...",
    )


def _version(ctx: click.Context, _param: click.Parameter, value: object) -> None:
    if value and not ctx.resilient_parsing:
        from mtpforge.drafting.machine import versions

        say(ctx, "\n".join(f"{name} {version}" for name, version in versions().items() if version))
        ctx.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code. Prints everything there is to print."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if _COMPLETE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(group(), {"auto_envvar_prefix": "MTPFORGE"}, "mtpforge", _COMPLETE, os.environ[_COMPLETE])
    streams.open_closed()
    screen = Screen(argv=tuple(arguments))
    with screen.stop.listening(), _noting(screen):
        try:
            code = _run(screen, arguments)
            screen.flush()
        except streams.HungUpError:
            code = errors.PIPE_CLOSED
        except MtpforgeError as error:  # the last lines found no room
            code = screen.fail(error, "")
    return code


@contextmanager
def _noting(screen: Screen) -> Iterator[None]:
    """Show what the library has to say on the way as notes."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            screen.note(f"note: {record.getMessage()}")

    log, notes = logging.getLogger("mtpforge.notes"), Notes()
    log.addHandler(notes)
    try:
        yield
    finally:
        log.removeHandler(notes)


def _run(screen: Screen, arguments: list[str]) -> int:
    try:
        # nothing typed: the help, but no success
        with group().make_context("mtpforge", list(arguments or ["--help"]), obj=screen) as ctx:
            ending = ctx.command.invoke(ctx)
            assert isinstance(ending, Ending)  # noqa: S101 -- every command returns one
            screen.stop.leave_if_asked()
            return screen.end(ending)
    except click.exceptions.Exit as stop:  # --help, --version
        return stop.exit_code if arguments else errors.USAGE
    except streams.HungUpError:
        raise
    except BaseException as error:  # noqa: BLE001 -- the one place where everything ends as a message
        screen.json = screen.json or "--json" in arguments  # a line that did not parse still gets its document
        screen.debug = screen.debug or "--debug" in arguments
        return screen.fail(*failing.explain(screen.stop.behind(error), screen))
