"""`mtpforge extract`: the layer in BF16, or by a preset, without a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtpforge.cli import making, options
from mtpforge.cli.grammar import Command
from mtpforge.cli.output import Ending, Screen

if TYPE_CHECKING:
    from mtpforge.drafting.request import CheckMode


@click.command(
    "extract",
    cls=Command,
    help="Write the MTP layer of a checkpoint on its own, in BF16 unless a scheme is named.",
    examples=(
        "mtpforge extract --source zai-org/GLM-5.2-FP8 --out out/layer",
        "mtpforge extract --source ./GLM-5.2-NVFP4 --out out/layer --dry-run",
    ),
    quiet="Only the path of what was made; nothing under --dry-run.",
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
    scales: str,
    inputs: Path | None,
    check: CheckMode,
    workers: int | None,
    memory: int,
    device: str,
) -> Ending:
    from mtpforge.drafting.deciding import Needless
    from mtpforge.drafting.request import Request

    request = Request(
        target=None,
        source=source,
        out=out,
        scheme=scheme,
        scales=scales,
        inputs=inputs,
        workers=workers or 0,
        memory=memory,
        check=check,
        force=force,
        max_shard_bytes=max_shard_size,
        device=device,
        offline=screen.offline,
    )
    job = making.decide(screen, request)
    assert not isinstance(job, Needless)  # noqa: S101 -- that takes a target
    if dry_run:
        return making.end_dry_run(screen, job)
    ending = making.carry_out(screen, job)
    screen.next("mtpforge", "inspect", str(job.out))
    return ending
