"""`mtpforge extract`: the layer as plain BF16, or by a preset, without a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtpforge.cli import fitting, making, options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.showing import summary, title

if TYPE_CHECKING:
    from mtpforge.tensors import ScaleMethod


@click.command(
    "extract",
    cls=Command,
    help="Write the MTP layer of a checkpoint on its own, as plain BF16 unless a scheme is named.",
    examples=(
        "mtpforge extract --source zai-org/GLM-5.2-FP8 --out out/layer",
        "mtpforge extract --source ./GLM-5.2-NVFP4 --out out/layer --dry-run",
    ),
    then="mtpforge inspect DRAFT",
)
@options.source(required=True)
@options.scheme(default="bf16", show_default=True)
@options.out(required=True)
@options.force()
@options.dry_run()
@options.max_shard_size()
@options.scales()
@options.inputs(help="Calibration inputs for `--scales gptq`; `mtpforge capture` makes them.")
@options.check()
@options.workers()
@options.memory()
@options.device()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    source: str,
    scheme: str,
    out: Path,
    force: bool,
    dry_run: bool,
    max_shard_size: int | None,
    scales: ScaleMethod,
    inputs: Path | None,
    check: making.Check,
    workers: int | None,
    memory: int,
    device: str,
) -> Ending:
    from mtpforge import scheme as schemes
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.engines.engine import Serving

    limits = making.Limits(workers or 0, memory, check, force, max_shard_size, device)
    making.refuse_early(limits, out)
    given = fitting.opened(inputs, scales)
    origin = open_checkpoint(source, offline=screen.offline)
    screen.line(f"source  {title(origin)}   {summary(origin)}")
    job = making.Job(
        source=origin,
        target=None,
        out=out,
        serving=Serving(),
        scheme=schemes.load(scheme),
        scales=scales,
        limits=limits,
    )
    job = fitting.fitted(screen, job, given)
    plan, folder = making.decide(screen, job)
    if dry_run:
        return making.end_dry_run(screen, job, plan, folder)
    ending = making.carry_out(screen, job, plan, folder)
    screen.next("mtpforge", "inspect", str(folder))
    return ending
