"""`mtpforge merge`: modules of several checkpoints under one config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtpforge import errors
from mtpforge.cli import options
from mtpforge.cli.grammar import Command, Option
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.showing import without
from mtpforge.errors import MtpforgeError, shown
from mtpforge.units import file_size

if TYPE_CHECKING:
    from mtpforge.publishing.graft import Link
    from mtpforge.publishing.merging import Merge


class Take(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases of click
    """`PATTERN=CKPT`."""

    name = "PATTERN=CKPT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:  # noqa: ANN401, ARG002
        """The pattern and the checkpoint."""
        if isinstance(value, tuple):
            return value
        pattern, sign, named = str(value).partition("=")
        if not (sign and pattern and named):
            raise MtpforgeError(
                f"`{shown(value)}` names no checkpoint",
                where="option `--take`",
                fix="`--take 'model.layers.*.mlp.experts.*=CKPT'`",
                code=errors.USAGE,
            )
        return pattern, named


@click.command(
    "merge",
    cls=Command,
    help="Write a checkpoint whose modules come from several of one model: the base, and what patterns take from"
    " others, under one config that states all of it; by links where whole files are taken.",
    examples=(
        "mtpforge merge --base ./INT8Mix --take 'model.layers.*.mlp.experts.*=./NVFP4' -o out/Int8Mix-NVFP4 --dry-run",
        "mtpforge merge --base org/GLM-5.2-INT8Mix --take 'model.layers.78.*=org/GLM-5.2-MTP' -o out/merged",
    ),
    quiet="Only the path of what was made; nothing under --dry-run.",
    then="mtpforge inspect DIR",
)
@click.option(
    "--base",
    type=options.CheckpointName(),
    required=True,
    cls=Option,
    heading="Input",
    elsewhere="--target",
    help="Checkpoint that gives all that nothing else does, and the config.",
)
@click.option(
    "--take",
    "takes",
    type=Take(),
    multiple=True,
    required=True,
    cls=Option,
    heading="Input",
    metavar="PATTERN=CKPT",
    help="Modules by name, `*` for anything, and who gives them; may be repeated, the first that fits wins.",
)
@options.out(required=True)
@options.link()
@options.force()
@options.dry_run()
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    base: str,
    takes: tuple[tuple[str, str], ...],
    out: Path,
    link: Link,
    force: bool,
    dry_run: bool,
) -> Ending:
    from mtpforge.publishing import making_merges, merging
    from mtpforge.writing.folder import kept_steps

    asked = merging.Asked(base=base, takes=takes, out=out, link=link, force=force, offline=screen.offline)
    with screen.watching() as watching:
        merge = merging.decide(asked, watching)
    making_merges.refuse(merge)
    _show(screen, merge)
    if dry_run:
        screen.next("mtpforge", *without(screen.argv, "--dry-run"))
        return Ending(_document(merge))
    screen.kept = lambda: kept_steps(out)
    with screen.progress() as on_progress:
        made = making_merges.make(merge, on_progress)
    screen.kept = lambda: f"the merge is whole: {out}"
    screen.line()
    screen.report(made.report)
    screen.line()
    screen.line(f"wrote   {out}   {file_size(sum(layout.n_bytes for _, _, layout in merge.rewritten))}", "green")
    screen.answer(str(out))
    screen.next("mtpforge", "inspect", str(out))
    return Ending({"merge": out, "report": made.report, "document": made.document})


def _show(screen: Screen, merge: Merge) -> None:
    rows: list[tuple[str, int]] = [("the base", len(merge.origins) - sum(merge.taken.values()))]
    screen.line()
    screen.table(("modules of", "n"), [*rows, *merge.taken.items()])
    screen.line()
    n_linked = file_size(sum(path.stat().st_size for path in merge.linked.values()))
    n_written = file_size(sum(layout.n_bytes for _, _, layout in merge.rewritten))
    how = {"hard": "hard links", "sym": "symbolic links", "copy": "copied"}[merge.asked.link]
    screen.line(f"  {len(merge.linked)} files {how} ({n_linked}), {len(merge.rewritten)} written ({n_written})")
    screen.line(f"  config.json: {', '.join([*merge.patch.set, *merge.patch.remove]) or 'as it is'}")


def _document(merge: Merge) -> dict[str, object]:
    return {
        "merge": merge.out,
        "taken": merge.taken,
        "linked": sorted(merge.linked),
        "rewritten": {layout.file: layout.n_bytes for _, _, layout in merge.rewritten},
        "config": merge.patch,
    }
