"""`mtpforge doctor`: versions of everything that matters, and what this machine computes with."""

from __future__ import annotations

import click

from mtpforge.cli import options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen
from mtpforge.drafting import machine


@click.command(
    "doctor",
    cls=Command,
    help="Versions of Python, of the libraries that mtpforge stands on, of the engines beside it; GPUs, memory, disk;"
    " by the engine's own tables which schemes it has kernels for here.",
    examples=("mtpforge doctor", "mtpforge doctor --engine-python ~/serving/bin/python --json"),
    quiet="Only what failed.",
    then="mtpforge demo",
)
@options.engine_python()
@click.pass_obj
def command(screen: Screen, *, engine_python: str | None) -> Ending:  # noqa: D103 -- the help text above
    report = machine.doctor(engine_python)
    screen.report(report)
    screen.next("mtpforge", "demo")
    return Ending({"report": report}, report.exit_code)
