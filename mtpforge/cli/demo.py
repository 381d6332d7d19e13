"""`mtpforge demo`: the main job on a tiny trained GLM-5.2 that the package carries; offline, in seconds."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from mtpforge.cli import making, options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen

if TYPE_CHECKING:
    from mtpforge.drafting.request import CheckMode

_CHECK: Final[CheckMode] = "full"  # the layer is tiny
_OUT: Final = Path("out") / "demo"
_DATA: Final = Path(str(files("mtpforge"))) / "_demo"
_TARGET, _SOURCE = _DATA / "awq-int4", _DATA / "nvfp4"


@click.command(
    "demo",
    cls=Command,
    help="Build an INT4 draft for a tiny AWQ target from a tiny NVFP4 source, and verify it.",
    examples=("mtpforge demo", "mtpforge demo --json"),
    quiet="Only the path of the draft.",
    then="mtpforge build --target CKPT --dry-run",
)
@options.out(default=_OUT, show_default=True)
@options.force()
@click.pass_obj
def command(screen: Screen, *, out: Path, force: bool) -> Ending:  # noqa: D103 -- the help text above
    from mtpforge.drafting.deciding import Needless
    from mtpforge.drafting.request import Request

    screen.line(
        "A tiny trained GLM-5.2 (4 layers, no hub, no GPU): its INT4 release lost the MTP layer, the NVFP4 one has it."
    )
    force = force or out == _OUT  # a second run replaces the first one's folder; what somebody named is theirs
    request = Request(target=_TARGET, source=_SOURCE, out=out, check=_CHECK, force=force, offline=True)
    job = making.decide(screen, request)
    assert not isinstance(job, Needless)  # noqa: S101 -- the target has no layer
    ending = making.carry_out(screen, job)
    argv = making.show_serve(screen, job.request, job.served, str(out.absolute()), job.plan.scheme)
    screen.next("mtpforge", "verify", str(out), "--target", str(_TARGET), "--source", str(_SOURCE))
    return making.with_keys(ending, {"serve": argv})


def source_beside(target: Path) -> tuple[str, ...]:
    """`--source` for the demo's target, whose layer no hub has; nothing for any other."""
    return ("--source", str(_SOURCE)) if target.resolve() == _TARGET.resolve() else ()
