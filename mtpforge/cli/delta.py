"""`mtpforge delta`: what a graft adds, without the target."""

from __future__ import annotations

from pathlib import Path

import click

from mtpforge.cli import options
from mtpforge.cli.grafting import carry_out_delta, decided, end_dry_run
from mtpforge.cli.grammar import Argument, Command, Option
from mtpforge.cli.output import Ending, Screen


@click.command(
    "delta",
    cls=Command,
    help="Write only what a graft of this layer would add to the target: its tensors, and the changes of the configs as"
    " data. `graft --delta` makes the graft of it, byte for byte, beside this revision of the target alone.",
    examples=(
        "mtpforge delta out/draft --against org/GLM-5.2-AWQ-INT4 -o out/delta",
        "mtpforge delta zai-org/GLM-5.2-FP8 --against ./GLM-5.2-AWQ-INT4 -o out/delta --dry-run",
    ),
    quiet="Only the path of the delta; nothing under --dry-run.",
    then="mtpforge graft --delta DIR --into CKPT -o DIR",
)
@click.argument("layer", cls=Argument, elsewhere="--source", type=options.CheckpointName(), metavar="DRAFT")
@click.option(
    "--against",
    type=options.CheckpointName(),
    required=True,
    cls=Option,
    heading="Input",
    elsewhere="--target",
    help="Checkpoint that it will be grafted into.",
)
@options.scheme(
    help="Preset, TOML file, or `lightest`: build the layer of a checkpoint so, in place of taking it as it is stored."
)
@options.engine(help=options.ENGINE_OF_GRAFT)
@options.out(required=True)
@options.force()
@options.dry_run()
@options.max_shard_size(help="Split the layer's weights into files.")
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    layer: str,
    against: str,
    scheme: str | None,
    engine: str,
    out: Path,
    force: bool,
    dry_run: bool,
    max_shard_size: int | None,
) -> Ending:
    from mtpforge.publishing.graft import Asked

    asked = Asked(
        layer=layer,
        target=against,
        out=out,
        scheme=scheme,
        engine=engine,
        force=force,
        max_shard_bytes=max_shard_size,
        offline=screen.offline,
        is_delta=True,
    )
    graft = decided(screen, asked, is_delta=True)
    if dry_run:
        return end_dry_run(screen, graft, is_delta=True)
    ending = carry_out_delta(screen, graft)
    screen.next("mtpforge", "graft", "--delta", str(out), "--into", against, "-o", "DIR")
    return ending
