"""`mtpforge build`: a draft that fits the target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtpforge.cli import experts as experts_of
from mtpforge.cli import fitting, making, options
from mtpforge.cli.grammar import Command, Option
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.showing import summary, title

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint
    from mtpforge.source_choice import Choice
    from mtpforge.tensors import ScaleMethod


@click.command(
    "build",
    cls=Command,
    help="Make a draft that fits the target: the MTP layer of the source, stored as the target's scheme demands.",
    examples=(
        "mtpforge build --target org/GLM-5.2-AWQ-INT4 --dry-run",
        "mtpforge build --target org/GLM-5.2-AWQ-INT4 --source zai-org/GLM-5.2-FP8 -o out/draft",
    ),
    then="mtpforge verify DRAFT --target CKPT",
)
@options.target(required=True)
@options.source(help="Checkpoint that the layer comes from; default: the target, else its base model.")
@options.scheme(help="Preset or TOML file that the target must agree with; default: the target's own.")
@options.engine()
@options.input_scales()
@options.out(help="Folder to write.  [default: out/<target>-MTP-<scheme>]")
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
    experts: int | str,
    prune_by: str | None,
    inputs: Path | None,
    keep_experts: str | None,
    scales: ScaleMethod,
    check: making.Check,
    workers: int | None,
    memory: int,
    device: str,
    tp: int,
    ep: bool,
) -> Ending:
    from mtpforge import scheme as schemes
    from mtpforge.checkpoint import open_checkpoint, open_scales
    from mtpforge.engines.engine import Serving

    limits = making.Limits(workers or 0, memory, check, force, max_shard_size, device)
    making.refuse_early(limits, out)
    served = open_checkpoint(target, offline=screen.offline)
    screen.line(f"target  {title(served)}   {summary(served)}")
    asked = replace(experts_of.asked(screen, experts, prune_by, keep_experts, inputs), fits=scales == "gptq")
    experts_of.refuse_idle_inputs(asked)
    origin, choice = chosen_source(screen, served, source, engine)
    job = making.Job(
        source=origin,
        target=served,
        out=out,
        engine=engine,
        scheme=schemes.load(scheme) if scheme else None,
        input_scales=open_scales(input_scales, served.config, offline=screen.offline) if input_scales else None,
        serving=Serving(tp, ep),
        scales=scales,
        limits=limits,
    )
    if choice is not None and choice.self_sufficient and asked.wish.is_default and not standalone:
        return _nothing_to_do(screen, job, choice)
    chosen = experts_of.chosen(screen, origin, served, asked)
    job = fitting.fitted(screen, replace(job, kept=None if chosen.keeps_all else chosen.kept), asked.inputs)
    plan, folder = making.decide(screen, job)
    plan = experts_of.noted(plan, chosen, asked)
    if dry_run:
        return making.end_dry_run(screen, job, plan, folder)
    ending = making.carry_out(screen, job, plan, folder)
    argv = making.show_serve(screen, job, str(folder.absolute()))
    if argv:
        screen.next("mtpforge", "validate", str(folder), "--target", target)
    return making.with_keys(ending, {"serve": argv})


def chosen_source(
    screen: Screen, target: Checkpoint, named: str | None, engine: str
) -> tuple[Checkpoint, Choice | None]:
    """The checkpoint that the layer comes from: named, or chosen; the choice and its alternatives are shown."""
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.engines import ENGINES
    from mtpforge.families import family_of
    from mtpforge.source_choice import choose_source

    def opened(name: str) -> Checkpoint:
        return open_checkpoint(name, offline=screen.offline)

    if named is not None:
        source = opened(named)
        screen.line(f"source  {title(source)}   {summary(source)}")
        return source, None
    choice = choose_source(target, family_of(target.config), ENGINES[engine], opened)
    screen.line(f"source  {title(choice.source)}   {choice.reason}")
    for name, remark in choice.alternatives:
        screen.line(f"        also: `--source {name}`, {remark}")
    return choice.source, choice


def _nothing_to_do(screen: Screen, job: making.Job, choice: Choice) -> Ending:
    """The target drafts for itself: say so, print the command, write nothing."""
    screen.line()
    screen.line("nothing to build: the target's own MTP layer loads and no silent failure is known for it", "green")
    argv = making.show_serve(screen, job, job.served.location)
    screen.note("\n`--standalone` builds a draft folder all the same")
    return Ending({"draft": None, "reason": choice.reason, "serve": argv})
