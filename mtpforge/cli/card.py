"""`mtpforge card`: the model card of a draft."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import click

from mtpforge import errors
from mtpforge.cli import options
from mtpforge.cli.grammar import Command, Option
from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.verify import draft_argument
from mtpforge.errors import MtpforgeError

_FILE = "README.md"
_ELSEWHERE = "name another place: `-o card.md`"


@click.command(
    "card",
    cls=Command,
    help="Write the draft's model card: lineage, licence, what it holds, what was checked, how it is served.",
    examples=(
        "mtpforge card out/draft --source ./GLM-5.2 --target ./GLM-5.2-AWQ-INT4",
        "mtpforge card out/draft --measured fidelity.json --measured bench.json -o card.md",
    ),
    quiet="Only the path of the card.",
    then="mtpforge push DRAFT ORG/NAME",
)
@draft_argument
@options.source(help="What it was made from, for licence and base; default: the repository in its manifest.")
@options.target(help="What it was made for, for the server command; default: the repository in its manifest.")
@click.option(
    "--measured",
    cls=Option,
    heading="Input",
    metavar="FILE.json",
    multiple=True,
    help="What fidelity, accept, bench or validate printed of this draft with --json; more than once for several.",
)
@click.option("--name", cls=Option, heading="Output", metavar="ORG/NAME", help="Where the draft will be found.")
@options.out(help="The card; default: README.md in the draft's folder.")
@options.force(help="Replace a model card that mtpforge wrote, in one move; nothing else.")
@click.pass_obj
def command(  # noqa: D103 -- the help text above
    screen: Screen,
    *,
    draft: str,
    source: str | None,
    target: str | None,
    measured: tuple[str, ...],
    name: str | None,
    out: Path | None,
    force: bool,
) -> Ending:
    from mtpforge.drafting.validating import folder_of
    from mtpforge.durable import files
    from mtpforge.durable.refusing import Words, refusals
    from mtpforge.publishing.calls import card
    from mtpforge.publishing.card import doubts
    from mtpforge.writing import outside

    place = out or folder_of(draft) / _FILE
    if place.suffix.lower() != ".md":
        raise MtpforgeError(
            f"{place} is no name of a card",
            where="option `-o`",
            why="a card is Markdown, and must not take the place of something else",
            fix="a name that ends in .md: `-o card.md`",
            code=errors.USAGE,
        )
    if _real(place).parent != _real(draft):
        outside.refuse_checkpoint(place, "card", "-o")
        outside.refuse_inside(place, "card", "-o", [_real(named) for named in (source, target) if named])
    _refuse_existing(place, force=force)
    text = card(draft, source=source, target=target, name=name or "", reports=measured, offline=screen.offline)
    choose = "choose another place with `-o`"
    with refusals(place, Words("the disk is full", f"free some, or {choose}", "cannot write the card", choose)):
        files.replace(place, text.encode())
    screen.traps(doubts(text, source or ""))
    screen.line(f"wrote   {place}")
    screen.answer(str(place))
    if _is_own(place, draft):
        screen.next(
            "mtpforge", "push", draft, name or "ORG/NAME", *options.kept("source", "target"), *_open_target(draft)
        )
    else:
        screen.note(f"note: `push` sends the card that lies in the draft's folder as {_FILE}, not this one")
    return Ending({"draft": draft, "out": place, "card": text})


def _is_own(place: Path, draft: str) -> bool:
    """Whether that is where `push` finds the card."""
    return _real(place) == _real(Path(draft) / _FILE)


def _real(named: str | Path) -> Path:
    """The place behind links and `~`; resolve() and Path's expanduser() raise where either leads nowhere."""
    return Path(os.path.realpath(os.path.expanduser(named)))  # noqa: PTH111


def _open_target(draft: str) -> tuple[str, ...]:
    """The option to fill in where neither the command nor the manifest names a target that `push` can open."""
    from mtpforge import manifest
    from mtpforge.checkpoint import open_checkpoint

    told = manifest.read(open_checkpoint(draft, offline=True)).target
    is_known = options.kept("target") or (told and "#" not in told)
    return () if is_known else ("--target", "CKPT")


def _refuse_existing(place: Path, *, force: bool) -> None:
    """MtpforgeError for a place that is taken; with `--force` for what no `card` wrote, as the owner's own card."""
    from mtpforge.checkpoint.metadata import MAX_DOCUMENT_BYTES
    from mtpforge.publishing.card import is_ours

    if not os.path.lexists(place):  # a link that leads nowhere is somebody's too
        return
    raw = b""
    with suppress(OSError), (place if place.is_file() else Path(os.devnull)).open("rb") as opened:
        raw = opened.read(MAX_DOCUMENT_BYTES + 1)
    is_card = is_ours(raw)
    if not force or not is_card:
        raise MtpforgeError(
            f"{place} exists",
            where="option `-o`",
            why="" if is_card else "it is no model card of mtpforge's, which alone `--force` replaces",
            fix="`--force` replaces it, `-o` names another place" if is_card else f"move it away, or {_ELSEWHERE}",
            code=errors.MACHINE,
        )
