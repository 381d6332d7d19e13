"""`mtpforge demo`: the main job on a tiny trained GLM-5.2 that the package carries; offline, in seconds."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

import click

from mtpforge.cli import making
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.showing import summary, title

_OUT: Final = Path("out") / "demo"
_CHECK: Final[making.Check] = "full"  # the layer is tiny


@click.command(
    "demo",
    cls=Command,
    help="Build an INT4 draft for a tiny AWQ target from a tiny NVFP4 source, verify it, leave it in out/demo.",
    examples=("mtpforge demo", "mtpforge demo --json"),
    then="mtpforge build --target CKPT --dry-run",
)
@click.pass_obj
def command(screen: Screen) -> Ending:  # noqa: D103 -- the help text above
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.engines.engine import Serving

    data = Path(str(files("mtpforge"))) / "_demo"
    target, source = (open_checkpoint(str(data / name), offline=True) for name in ("awq-int4", "nvfp4"))
    screen.line(
        "A tiny trained GLM-5.2 (4 layers, no hub, no GPU): its INT4 release lost the MTP layer, the NVFP4 one has it."
    )
    screen.line(f"target  {title(target)}   {summary(target)}")
    screen.line(f"source  {title(source)}   {summary(source)}")
    # a second run replaces the first one's folder; --force never replaces a folder that is no draft
    job = making.Job(source, target, _OUT, Serving(), limits=making.Limits(check=_CHECK, force=True))
    plan, out = making.decide(screen, job)
    ending = making.carry_out(screen, job, plan, out)
    argv = making.show_serve(screen, job, str(out.absolute()))
    screen.next("mtpforge", "verify", str(out), "--target", target.label, "--source", source.label)
    return making.with_keys(ending, {"serve": argv})
