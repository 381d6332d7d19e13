"""The grammar that all commands share: help layout, headings, suggestions, values chosen from a table.

Option     an option that knows its heading in `--help`
Argument   a word that most commands have an option for
Command    usage, one sentence, two examples, options under headings, the next command
OneOf      a value out of a table that is loaded when a value is given, with a suggestion for a misspelt one
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from click.shell_completion import CompletionItem

from mtpforge import errors
from mtpforge.cli.output import Screen
from mtpforge.errors import MtpforgeError, shown

HEADINGS: Final = ("Input", "Output", "Experts", "Compute", "General")


class Option(click.Option):
    """A click option with the heading under which `--help` lists it.

    elsewhere: what most commands call the same thing, for whoever types it here.
    """

    def __init__(self, *args: Any, heading: str = "General", elsewhere: str = "", **attrs: Any) -> None:  # noqa: ANN401 -- click's own
        super().__init__(*args, **attrs)
        self.heading, self.elsewhere = heading, elsewhere


class Argument(click.Argument):
    """A click argument. elsewhere: as of an `Option`."""

    def __init__(self, *args: Any, elsewhere: str = "", **attrs: Any) -> None:  # noqa: ANN401 -- click's own
        super().__init__(*args, **attrs)
        self.elsewhere = elsewhere


class Command(click.Command):
    """A command whose help has two examples and the next step, and which knows the general options.

    quiet: what `-q` prints of it, a sentence of its help.
    """

    def __init__(
        self,
        name: str | None,
        *,
        examples: Sequence[str],
        quiet: str,
        then: str = "",
        params: list[click.Parameter] | None = None,
        **attrs: Any,  # noqa: ANN401 -- click's own
    ) -> None:
        super().__init__(name, params=[*(params or []), *general_options(quiet)], add_help_option=False, **attrs)
        self.examples, self.then = tuple(examples), then

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse them; a value that is given twice is an error, since only the last would count."""
        if not ctx.resilient_parsing:
            given, extra, order = self.make_parser(ctx).parse_args(list(args))
            if extra:
                self._refuse_extra(extra[0])
            self._refuse_empty(given)
            for param in order:
                if isinstance(param, Option) and not (param.multiple or param.is_flag) and order.count(param) > 1:
                    raise MtpforgeError(
                        f"`{param.opts[0]}` is given twice", fix="give one of the two values", code=errors.USAGE
                    )
        return super().parse_args(ctx, args)

    def _refuse_extra(self, word: str) -> NoReturn:
        """A checkpoint that is typed without its option is what people mean by the word that is too much."""
        named = next((p.opts[0] for p in self.params if isinstance(p, Option) and p.required), "")
        raise MtpforgeError(
            f"`{shown(word)}` stands alone: `{self.name}` takes "
            + ("no more arguments" if any(isinstance(p, click.Argument) for p in self.params) else "options only"),
            fix=f"did you mean `{named} {shown(shlex.quote(word))}`?" if named else f"`mtpforge {self.name} --help`",
            code=errors.USAGE,
        )

    def _refuse_empty(self, given: Mapping[str, object]) -> None:
        """What a variable of the shell leaves that was never set: `-o "$out"` would mean the current folder."""
        for param in self.params:
            if given.get(str(param.name)) in ("", [""]):
                name = param.opts[-1] if isinstance(param, Option) else param.human_readable_name
                raise MtpforgeError(
                    f"`{name}` is empty",
                    why="nothing is called so; a variable of the shell that is not set leaves this",
                    fix="give it a value, or leave it out" if not param.required else "give it a value",
                    code=errors.USAGE,
                )

    def invoke(self, ctx: click.Context) -> object:
        """Run it; `-q` and `-v` together are an error, and so is a page in a folder that it reads or makes."""
        if ctx.obj is not None and ctx.obj.quiet and ctx.obj.verbose:
            raise MtpforgeError("`-q` and `-v` exclude each other", fix="leave one of them out", code=errors.USAGE)
        self._keep_out(ctx)
        found: object = super().invoke(ctx)
        return found

    def _keep_out(self, ctx: click.Context) -> None:
        page, picture = ctx.obj.page if isinstance(ctx.obj, Screen) else None, ctx.params.get("picture")
        if page is None and picture is None:
            return
        from mtpforge.reporting import drawing, writing

        folders = list(self._folders(ctx))
        if page is not None:
            writing.refuse_inside(page, folders)
        if picture is not None:
            drawing.refuse_inside(picture, folders)

    def _folders(self, ctx: click.Context) -> Iterator[Path]:
        """What the values of this line name: checkpoints that are folders, and folders to be made."""
        for param in self.params:
            given = ctx.params.get(str(param.name)) or ()
            for value in given if isinstance(given, tuple) else (given,):
                is_read = getattr(param.type, "is_read", False) and os.path.isdir(value)  # noqa: PTH112
                if is_read or getattr(param.type, "is_made", False):
                    yield Path(value)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, one sentence, examples, options by heading, next."""
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text(self.help or "")
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
        write_options(self.get_params(ctx), ctx, formatter)
        if self.then:
            formatter.write(f"\nNext: {self.then}\n")


def write_options(params: Iterable[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Options under their headings, in the order in which they were declared."""
    options = [p for p in params if isinstance(p, Option)]
    for heading in HEADINGS:
        rows = [record for o in options if o.heading == heading and (record := o.get_help_record(ctx))]
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)


def general_options(quiet: str) -> list[click.Parameter]:
    """Options that every command takes, before or after its name. Each sets a field of the Screen."""
    keep: dict[str, Any] = {"expose_value": False, "callback": _remember, "is_eager": True}
    return [
        Option(["--json"], is_flag=True, help="One JSON document on stdout, also on failure.", **keep),
        Option(["-q", "--quiet"], is_flag=True, help=quiet, **keep),
        Option(["-v", "--verbose"], is_flag=True, help="Every module, every rule.", **keep),
        Option(
            ["--color"], type=OneOf("WHEN", lambda: ("auto", "always", "never")), help="auto, always or never.", **keep
        ),
        Option(["--offline"], is_flag=True, help="Folders and the hub cache only, no network.", **keep),
        Option(["--debug"], is_flag=True, help="Print the traceback of an error.", **keep),
        Option(
            ["-h", "--help"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_help,
            help="This text.",
        ),
    ]


def _remember(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value and ctx.obj is not None:
        setattr(ctx.obj, str(param.name), value)


def _show_help(ctx: click.Context, _param: click.Parameter, value: object) -> None:
    if value and not ctx.resilient_parsing:
        say(ctx, ctx.get_help())
        ctx.exit()


def say(ctx: click.Context, text: str) -> None:
    """Print what `--help` and `--version` were asked for."""
    screen = ctx.find_object(Screen)
    assert screen is not None  # noqa: S101 -- set by main()
    screen.text(text)


class OneOf(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases of click
    """A name out of a table. The table is only loaded for a value, so that `--help` stays instant."""

    name = "choice"

    def __init__(self, metavar: str, choices: Callable[[], Iterable[str]]) -> None:
        self.name, self.choices = metavar, choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401, ARG002
        """The value itself; one that is not in the table is an error that names the nearest."""
        known = tuple(self.choices())
        if value in known:
            return str(value)
        option = param.opts[-1] if param else self.name
        raise MtpforgeError(
            f"`{shown(value)}` is no value of `{option}`",
            where=f"option `{option}`",
            why=f"known: {', '.join(known)}",
            fix=suggestion(str(value), known, f"{option} ") or f"e.g. `{option} {known[0]}`",
            code=errors.USAGE,
        )

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Names of the table that go on from what was typed."""
        return [CompletionItem(name) for name in self.choices() if name.startswith(incomplete)]


def suggestion(typed: str, known: Iterable[str], before: str = "") -> str:
    """`did you mean ...?` for the nearest known word, or "" where none is near."""
    near = get_close_matches(typed, list(known), n=1)
    return f"did you mean `{before}{near[0]}`?" if near else ""
