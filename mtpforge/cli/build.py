"""`mtpforge build`: a draft that fits the target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from mtpforge.cli import making, options
from mtpforge.cli.grammar import Command, Option
from mtpforge.cli.output import Ending, Screen

if TYPE_CHECKING:
    from mtpforge.drafting.deciding import Needless
    from mtpforge.drafting.request import CheckMode, Count, Request


@click.command(
    "build",
    cls=Command,
    help="Make a draft that fits the target: the MTP layer of the source, stored as the target's scheme demands.",
    examples=(
        "mtpforge build --target org/GLM-5.2-AWQ-INT4 --dry-run",
        "mtpforge build --target org/GLM-5.2-AWQ-INT4 --source zai-org/GLM-5.2-FP8 -o out/draft",
    ),
    quiet="Only the path of the draft that was made; nothing where none was.",
    then="mtpforge verify DRAFT --target CKPT",
)
@options.target(required=True)
@options.source(help="Checkpoint that the layer comes from; default: the target, else its base model.")
@options.scheme(
    help="Preset, TOML file, or `lightest` that the target can state; default: the target's own. Another one is told to"
    " the engine by the serve command."
)
@options.engine()
@options.input_scales()
@options.out(
    help="Folder to write.  [default: out/<target>-MTP-<scheme>; where another target has a draft there"
    " out/<org>-<target>-..., for a folder out/<target>-<hash>-...]"
)
@options.force()
@options.dry_run()
@options.max_shard_size()
@click.option(
    "--standalone",
    cls=Option,
    heading="Output",
    is_flag=True,
    help="Build even if the target's own layer loads as it is.",
)
@options.report()
@options.overlay()
@options.experts()
@options.prune_by()
@options.inputs()
@options.keep_experts()
@options.scales()
@options.check()
@options.workers()
@options.memory()
@options.device()
@options.tp()
@options.ep()
@options.kv_cache_dtype()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    target: str,
    source: str | None,
    scheme: str | None,
    engine: str,
    input_scales: str | None,
    out: Path | None,
    force: bool,
    dry_run: bool,
    max_shard_size: int | None,
    standalone: bool,
    overlay: Path | None,
    experts: int | str,
    prune_by: str | None,
    inputs: Path | None,
    keep_experts: str | None,
    scales: str,
    check: CheckMode,
    workers: int | None,
    memory: int,
    device: str,
    tp: int,
    ep: bool,
    kv_cache_dtype: str,
) -> Ending:
    from mtpforge.drafting.request import Request

    request = Request(
        target=target,
        source=source,
        out=out,
        engine=engine,
        scheme=scheme,
        input_scales=input_scales,
        experts=cast("Count", experts),
        prune_by=prune_by or "",
        keep_experts=keep_experts,
        inputs=inputs,
        scales=scales,
        tp=tp,
        ep=ep,
        kv_cache_dtype=kv_cache_dtype,
        overlay=overlay,
        standalone=standalone,
        workers=workers or 0,
        memory=memory,
        check=check,
        force=force,
        max_shard_bytes=max_shard_size,
        device=device,
        offline=screen.offline,
    )
    return _made(screen, request, target, dry_run=dry_run)


def _made(screen: Screen, request: Request, target: str, *, dry_run: bool) -> Ending:
    """The draft, its plan, or that none is needed; with the command that serves it."""
    from mtpforge.drafting.deciding import Needless

    job = making.decide(screen, request)
    if isinstance(job, Needless):
        return _nothing_to_do(screen, job)
    if dry_run:
        return making.end_dry_run(screen, job)
    ending = making.carry_out(screen, job)
    served, target = making.served(job, target)
    argv = making.show_serve(screen, request, served, str(job.out.absolute()), job.plan.scheme)
    if argv:
        kept = options.kept("source", "engine", "tp", "ep")
        screen.next("mtpforge", "validate", str(job.out), "--target", target, *kept)
    return making.with_keys(ending, {"serve": argv})


def _nothing_to_do(screen: Screen, found: Needless) -> Ending:
    """The target drafts for itself: say so, print the command, write nothing."""
    screen.line()
    screen.line("nothing to build: the target's own MTP layer loads and no silent failure is known for it", "green")
    argv = making.show_serve(screen, found.request, found.target, found.target.location, found.scheme)
    screen.note("\n`--standalone` builds a draft folder all the same")
    return Ending({"draft": None, "reason": found.reason, "serve": argv})
