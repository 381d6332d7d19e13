"""`mtpforge schemes`: list the presets, explain one, or derive one from a target."""

from __future__ import annotations

import os
import shlex

import click

from mtpforge import errors
from mtpforge.cli import options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen
from mtpforge.errors import MtpforgeError, shown
from mtpforge.formats import label
from mtpforge.scheme import Scheme


@click.command(
    "schemes",
    cls=Command,
    help="List the presets; with NAME explain one; with `--from` derive the one that a target demands.",
    examples=("mtpforge schemes int4-g32-asym", "mtpforge schemes --from org/GLM-5.2-AWQ-INT4 -q > target.toml"),
    quiet="Only the names; of one scheme, its TOML.",
    then="mtpforge extract --source CKPT --scheme NAME --out DIR",
)
@click.argument("name", required=False, metavar="[NAME|FILE]")
@options.target("--from", "origin", help="Derive the scheme that a draft for this target needs.")
@options.engine()
@click.pass_obj
def command(screen: Screen, *, name: str | None, origin: str | None, engine: str) -> Ending:  # noqa: D103 -- help above
    if name and origin:
        raise MtpforgeError(
            "NAME and `--from` exclude each other",
            where="option `--from`",
            fix=f"`mtpforge schemes {name}`, or `mtpforge schemes --from {origin}`",
            code=errors.USAGE,
        )
    from mtpforge import scheme as schemes

    if origin:
        return _explain(screen, _derived(screen, origin, engine))
    if name and name not in schemes.names() and os.path.isdir(name):  # noqa: PTH112 -- Path's raises for a long name
        raise MtpforgeError(
            f"`{shown(name)}` is a folder, no scheme",
            where="argument NAME",
            fix=f"`{shlex.join(['mtpforge', 'schemes', '--from', name])}` derives the scheme of a checkpoint",
            code=errors.USAGE,
        )
    if name:
        return _explain(screen, schemes.load(name))
    known = [schemes.load(each) for each in schemes.names()]
    screen.table(("scheme", "for"), [(each.name, _short(each, screen)) for each in known])
    screen.answer("\n".join(each.name for each in known))
    screen.next("mtpforge", "schemes", known[0].name)
    return Ending({"schemes": known})


def _short(scheme: Scheme, screen: Screen) -> str:
    """Its first sentence: in a pipe nothing is broken into lines, and `mtpforge schemes NAME` has the rest."""
    first, dot, _ = scheme.description.partition(". ")
    return scheme.description if screen.verbose or not dot else first


def _derived(screen: Screen, target: str, engine: str) -> Scheme:
    from mtpforge.checkpoint import open_served
    from mtpforge.engines import engine_of
    from mtpforge.families import family_of

    served = open_served(target, offline=screen.offline)
    return engine_of(engine).demands(served, None, family_of(served.config))


def _explain(screen: Screen, scheme: Scheme) -> Ending:
    """What it is for, its rules, and with `-q` the file itself."""
    from mtpforge import scheme as schemes

    text = schemes.dumps(scheme)
    screen.line(f"{scheme.name}   {scheme.description}".rstrip())
    screen.line()
    rows = [(rule.pattern, label(rule.quantization), rule.reason) for rule in scheme.rules]
    screen.table(("modules", "stored as", "because"), rows)
    screen.answer(text.rstrip())
    return Ending({"scheme": scheme, "toml": text})
