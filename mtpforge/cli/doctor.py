"""`mtpforge doctor`: versions of everything that matters, and what this machine computes with."""

from __future__ import annotations

import click

from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen
from mtpforge.drafting import machine


@click.command(
    "doctor",
    cls=Command,
    help="Versions of Python, of the libraries that mtpforge stands on, of the engines beside it; GPUs, memory, disk.",
    examples=("mtpforge doctor", "mtpforge doctor --json"),
    quiet="Only what failed.",
    then="mtpforge demo",
)
@click.pass_obj
def command(screen: Screen) -> Ending:  # noqa: D103 -- the help text above
    report = machine.doctor()
    screen.report(report)
    screen.next("mtpforge", "demo")
    return Ending({"report": report}, report.exit_code)
