"""`mtpforge completion`: the completion script of a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mtpforge.cli.grammar import Command, OneOf
from mtpforge.cli.output import Ending, Screen


@click.command(
    "completion",
    cls=Command,
    help="Print the completion script for bash, zsh or fish.",
    examples=(
        'eval "$(mtpforge completion bash)"',
        "mtpforge completion fish > ~/.config/fish/completions/mtpforge.fish",
    ),
    quiet="Only the script, as without it.",
)
@click.argument("shell", type=OneOf("SHELL", lambda: ("bash", "zsh", "fish")), metavar="bash|zsh|fish")
@click.pass_context
def command(ctx: click.Context, *, shell: str) -> Ending:  # noqa: D103 -- the help text above
    screen = ctx.find_object(Screen)
    found = get_completion_class(shell)
    assert screen is not None and found is not None  # noqa: S101, PT018 -- set by main(); one of click's three
    script = found(ctx.find_root().command, {}, "mtpforge", "_MTPFORGE_COMPLETE").source()
    screen.raw(script)
    return Ending({"script": script})
