"""`mtpforge graft`: the target once more, with the layer inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtpforge.cli import options
from mtpforge.cli.grafting import carry_out, decided, end_dry_run
from mtpforge.cli.grammar import Argument, Command, Option
from mtpforge.cli.output import Ending, Screen

if TYPE_CHECKING:
    from mtpforge.publishing.graft import Link


@click.command(
    "graft",
    cls=Command,
    help="Write the target once more with the layer inside, as links to its files. DRAFT is a draft, or a checkpoint"
    " that has the layer: as it is stored where the engine can be told so, else built first as `build` would.",
    examples=(
        "mtpforge graft out/draft --into org/GLM-5.2-AWQ-INT4 -o out/GLM-5.2-AWQ-INT4-MTP",
        "mtpforge graft zai-org/GLM-5.2 --into ./GLM-5.2-W4A16 -o out/GLM-5.2-W4A16-MTP --dry-run",
    ),
    quiet="Only the path of the graft; nothing under --dry-run.",
    then="mtpforge inspect GRAFT",
)
@click.argument(
    "layer", cls=Argument, elsewhere="--source", type=options.CheckpointName(), metavar="[DRAFT]", required=False
)
@options.into(required=True)
@click.option(
    "--delta",
    type=click.Path(path_type=Path),
    metavar="DIR",
    cls=Option,
    heading="Input",
    help="In place of DRAFT: what `mtpforge delta` wrote for this target.",
)
@options.scheme(
    help="Preset, TOML file, or `lightest`: build the layer of a checkpoint so, in place of taking it as it is stored."
)
@options.engine(help=options.ENGINE_OF_GRAFT)
@options.out(required=True)
@options.link()
@options.force()
@options.dry_run()
@options.max_shard_size(help="Split the layer's weights into files.")
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    layer: str | None,
    into: str,
    delta: Path | None,
    scheme: str | None,
    engine: str,
    out: Path,
    link: Link,
    force: bool,
    dry_run: bool,
    max_shard_size: int | None,
) -> Ending:
    from mtpforge.engines import named
    from mtpforge.publishing.graft import Asked

    asked = Asked(
        layer=layer,
        target=into,
        out=out,
        delta=delta,
        scheme=scheme,
        engine=engine,
        link=link,
        force=force,
        max_shard_bytes=max_shard_size,
        offline=screen.offline,
    )
    graft = decided(screen, asked)
    if dry_run:
        return end_dry_run(screen, graft)
    ending = carry_out(screen, graft)
    screen.next("mtpforge", "serve", str(out), "--target", str(out), *named(graft.addition.engine), "--print")
    return ending
