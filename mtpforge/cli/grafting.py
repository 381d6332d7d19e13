"""What graft and delta share: show what is decided, and what was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtpforge.cli.output import Ending, Screen
from mtpforge.cli.showing import without
from mtpforge.units import file_size

if TYPE_CHECKING:
    from mtpforge.publishing.graft import Asked, Graft

_COLUMNS = ("files", "n", "size", "")


def decided(screen: Screen, asked: Asked, *, is_delta: bool = False) -> Graft:
    """The graft, decided and shown."""
    from mtpforge.publishing.calls import decide
    from mtpforge.publishing.making import refuse
    from mtpforge.writing.folder import DELTA, GRAFT

    with screen.watching() as watching:
        graft = decide(asked, watching)
    refuse(graft, DELTA if is_delta else GRAFT)
    added = graft.addition
    screen.line(f"{'delta' if is_delta else 'graft':<7} {graft.out}   layer {added.number} as {added.scheme}")
    if graft.why:
        screen.note(f"note: the layer is built first: {graft.why}")
    screen.line()
    screen.table(_COLUMNS, _rows(graft, is_delta=is_delta))
    screen.line()
    changed = ", ".join([*added.config.set, *(f"{key} (goes)" for key in added.config.remove)])
    screen.line(f"  config.json: {changed or 'as it is'}")
    if added.side_goes:
        screen.note("note: hf_quant_config.json is left out: it cannot state this layer, and config.json does")
    screen.traps(graft.traps)
    return graft


def _rows(graft: Graft, *, is_delta: bool) -> list[tuple[str, int, str, str]]:
    """What becomes of which files."""
    n_new = sum(layout.n_bytes for layout in graft.shards)
    rows = [("the layer's", len(graft.shards), file_size(n_new), f"written: {len(graft.addition.tensors):,} tensors")]
    if is_delta:
        return rows
    if graft.kept:
        n_kept = sum(layout.n_bytes for _, layout in graft.kept)
        rows.append(("the target's", len(graft.kept), file_size(n_kept), "written without the layer that they held"))
    if graft.dropped:
        rows.append(("the target's", len(graft.dropped), "", "left out: they held nothing but that layer"))
    n_same = sum(path.stat().st_size for path in graft.linked.values())
    how = {"hard": "hard links", "sym": "symbolic links", "copy": "copied"}[graft.asked.link]
    rows.append(("the target's", len(graft.linked), file_size(n_same), how))
    return rows


def end_dry_run(screen: Screen, graft: Graft, *, is_delta: bool = False) -> Ending:
    """What is decided as the result; nothing for `-q`."""
    screen.next("mtpforge", *without(screen.argv, "--dry-run"))
    added = graft.addition
    return Ending(
        {
            "delta" if is_delta else "graft": graft.out,
            "scheme": added.scheme,
            "built_first": graft.why,
            "n_tensors": len(added.tensors),
            "files": {layout.file: layout.n_bytes for layout in graft.shards},
            "rewritten": {} if is_delta else {layout.file: layout.n_bytes for _, layout in graft.kept},
            "left_out": [] if is_delta else graft.dropped,
            "linked": [] if is_delta else sorted(graft.linked),
            "superseded": len(graft.superseded),
            "config": added.config,
            "side_file": added.side,
            "traps": graft.traps,
        }
    )


def carry_out(screen: Screen, graft: Graft) -> Ending:
    """Make, judge, show."""
    from mtpforge.publishing import calls
    from mtpforge.writing.folder import kept_steps

    screen.kept = lambda: kept_steps(graft.out)
    with screen.progress() as on_progress:
        made = calls.carry_out(graft, on_progress)
    screen.line()
    screen.report(made.report)
    return _ended(screen, graft, "graft", {"graft": graft.out, "report": made.report, "document": made.document})


def carry_out_delta(screen: Screen, graft: Graft) -> Ending:
    """Make and show: it is judged when it is grafted."""
    from mtpforge.publishing.making import make_delta
    from mtpforge.writing.folder import kept_steps

    screen.kept = lambda: kept_steps(graft.out)
    with screen.progress() as on_progress:
        made = make_delta(graft, on_progress)
    return _ended(screen, graft, "delta", {"delta": graft.out, "document": made.document})


def _ended(screen: Screen, graft: Graft, what: str, document: dict[str, object]) -> Ending:
    screen.kept = lambda: f"the {what} is whole: {graft.out}"
    n_bytes = sum(layout.n_bytes for layout in graft.shards)
    n_bytes += sum(layout.n_bytes for _, layout in graft.kept) if what == "graft" else 0
    screen.line()
    screen.line(f"wrote   {graft.out}   {file_size(n_bytes)}", "green")
    screen.answer(str(graft.out))
    return Ending(document)
