"""What the pages of fidelity and accept say, and of validate, which may hold the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mtpforge.reporting import charts, checks
from mtpforge.reporting.blocks import Block, Cell, Facts, Named, Page, Section, Table, Verdict, Words
from mtpforge.reporting.charts import Sized
from mtpforge.reporting.drawing import pictured
from mtpforge.reporting.naming import apart
from mtpforge.reporting.values import At, counted, difference, measured, sized

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW: Final = 20  # single modules of a table; all of them are in the document
_SYNTHETIC: Final = "Inputs are synthetic: they show that nothing is broken, and rank nothing."
_UNSEEN: Final = "Activations are not quantized here, as engines of W4A4 and FP8 do it."
_BOUND: Final = (
    "No target can lose more of the first token's acceptance on these inputs than the total variation."
    " Several drafts, by `--compare`, are drawn too, by size and loss."
)
_STEPS: Final = ("step", "rows", "total variation", "KL", "same token", "states off", "routing", "accepted", "dense")
_SWAPS: Final = ("module", "rows", "weights off", "states off", "total variation")
_RANKS: Final = ("draft", "size", "experts", "total variation", "KL", "accepted", "lost", "answer")


def compared(document: At) -> Page:
    """Of fidelity: sizes against what is lost, then each draft with its steps and modules."""
    found = document["fidelity"]
    drafts = list(found["drafts"])
    best = [each.text for each in document["ranked"]]
    drafts.sort(key=lambda draft: best.index(draft["draft"].text) if draft["draft"].text in best else len(best))
    names = _named(drafts)
    sections = [*_ranked(found, drafts), *checks.checks(document["report"])]
    for number, (name, draft) in enumerate(zip(names, drafts, strict=True)):
        sections += _draft(name, draft, number)
    pairs: list[tuple[str, Cell]] = [
        ("dense layer", Named(found["reference"].text)),
        ("its size", sized(found["reference_bytes"])),
        ("tokens", counted(found["n_tokens"])),
        ("sequences", counted(found["n_sequences"])),
        ("steps", counted(found["k"])),
        ("state handed on", found["recycled"].text),
    ]
    pairs += [(label, Named(found[key].text)) for label, key in _INPUTS if found[key]]
    many = len(drafts) > 1
    return Page(
        _title("Fidelity", names),
        checks.answer(document),
        f"Nearest to the dense layer: `{names[0]}`."
        if many
        else "Predictions of the draft beside the dense layer's, on the same inputs.",
        (*sections, Section("Facts", [Facts(pairs)])),
        (_UNSEEN, *([_SYNTHETIC] if found["is_synthetic"] else [])),
    )


_INPUTS: Final = (("captured from", "captured_from"), ("inputs, sha256", "inputs"))


def _ranked(found: At, drafts: Sequence[At]) -> list[Section]:
    """A row a draft, and a picture where there are several to compare. None where there is no draft."""
    rows: list[Sequence[Cell]] = []
    for draft in drafts:
        step = draft["steps"][0]
        lost = difference(step["acceptance_reference"], step["acceptance"])
        numbers = (measured(step["total_variation"]), measured(step["divergence"]), measured(step["acceptance"]), lost)
        broken = any(check["verdict"].value == "failed" for check in draft["checks"])
        word = Verdict("clearly broken", "failed") if broken else Verdict("not broken", "passed")
        size = (sized(draft["n_bytes"]), counted(draft["n_experts"]))
        rows.append((Named(draft["draft"].text), *size, *numbers, word))
    if not rows:
        return []
    if len(rows) == 1:
        table = Table("What the first step comes to", _RANKS, rows)
        return [Section("Size and loss", [table, Words(_BOUND)])]
    table = Table("Drafts, nearest to the dense layer first", _RANKS, rows)
    if len(_points(found)) < 2:  # noqa: PLR2004 -- one dot compares nothing
        return [Section("Size against loss", [table])]
    says = (
        "Each draft by the size of its layer and the total variation of its first step: no target can lose more of the"
        " first token's acceptance on these inputs. Crosses below show what was lost beside the captured target, where"
        " one is known; the dashed line is the dense layer's size."
    )
    picture = pictured("sizes", "Size against loss", says, lambda: size_against_loss(found), table)
    return [Section("Size against loss", [replace(picture, is_open=True)])]


def size_against_loss(found: At) -> Figure:
    """The drafts of a Fidelity by the size of their layers; those that could not be computed are left out."""
    title = "synthetic inputs" if found["is_synthetic"] else f"{found['n_tokens'].number:,.0f} captured tokens"
    return charts.size_against_loss(_points(found), found["reference_bytes"].number, title)


def _points(found: At) -> list[Sized]:
    """The drafts whose size and first step are numbers."""
    drafts = list(found["drafts"])
    points = [
        Sized(
            name,
            draft["n_bytes"].number,
            step["total_variation"].number,
            step["acceptance_reference"].number - step["acceptance"].number,
        )
        for name, draft in zip(_named(drafts), drafts, strict=True)
        for step in list(draft["steps"])[:1]
    ]
    return [point for point in points if math.isfinite(point.n_bytes) and math.isfinite(point.far)]


def _draft(name: str, draft: At, number: int) -> list[Section]:
    """One draft: its steps, and what its modules cost."""
    if not draft["steps"]:
        return []
    rows: list[Sequence[Cell]] = [
        (
            counted(step["step"]),
            counted(step["n_rows"]),
            *(measured(step[key]) for key in ("total_variation", "divergence", "agreement", "state_error", "routing")),
            measured(step["acceptance"]),
            measured(step["acceptance_reference"]),
        )
        for step in draft["steps"]
    ]
    blocks: list[Block] = [Table(f"Steps of {name}", _STEPS, rows)]
    kinds = [swap for swap in draft["swaps"] if not swap["module"]]
    single = [swap for swap in draft["swaps"] if swap["module"] and swap["state_error"]][:_FEW]
    cost = [(s["kind"].text, s["total_variation"].number) for s in kinds if s["total_variation"]]
    if any(math.isfinite(value) for _, value in cost):
        says = (
            "All modules of a kind of the draft's put into the dense layer together: total variation of the first step"
            " with and without them. The longest bar is what costs most."
        )
        table = Table(f"Kinds of modules of {name}", _SWAPS, [_swap(swap, "kind") for swap in kinds])
        title = f"What each kind of module costs {name}"
        blocks.append(pictured(f"kinds{number}", title, says, lambda: charts.bars(cost, "total variation"), table))
    if single:
        blocks.append(
            Table(f"Single modules of {name} that cost most", _SWAPS, [_swap(swap, "module") for swap in single])
        )
    return [Section(f"In detail: {name}", blocks)]


def _swap(swap: At, name: str) -> Sequence[Cell]:
    numbers = (measured(swap[key]) for key in ("weight_error", "state_error", "total_variation"))
    return (Named(swap[name].text), counted(swap["n_rows"]), *numbers)


def validated(document: At) -> Page:
    """Of validate: what verify found, what the engine's loader said, what fidelity found where inputs were given."""
    report, engine, found = document["report"], document["engine"], document["fidelity"]
    sections = [
        *checks.checks(report),
        *checks.checks(engine, "What the engine's loader said"),
        *checks.checks(document["predictions"], "Predictions beside the dense layer's"),
    ]
    drafts = list(found["drafts"])
    for number, (name, draft) in enumerate(zip(_named(drafts), drafts, strict=True)):
        sections += _draft(name, draft, number)
    asked = "`accept` and `bench`" if found else "`fidelity`, `accept` and `bench`"
    served = f"Nothing was served: whether tokens are accepted is what {asked} ask."
    known = (*checks.traps(report["traps"]), *checks.traps(engine["traps"]), *checks.facts(report))
    return Page(
        checks.about("Validation", document),
        checks.answer(document),
        report["summary"].text,
        (*sections, *checks.module_errors(report), *known),
        (*([_UNSEEN] if found else []), served),
    )


def accepted(document: At) -> Page:
    """Of accept: acceptance by position beside the published curve, then tokens a cycle."""
    found = document["acceptance"]
    names = _named(list(found["drafts"]))
    sections = [*_positions(document, found, names), *(_drawn(found, how) for how in ("sampled", "greedy") if names)]
    pairs: list[tuple[str, Cell]] = [
        ("target", Named(found["target"].text)),
        ("windows", counted(found["n_windows"])),
        ("tokens of a prompt", counted(found["length"])),
        ("tokens that the target adds", counted(found["generate"])),
        ("temperature", measured(found["temperature"], 2)),
        ("state handed on", found["recycled"].text),
    ]
    return Page(
        _title("Acceptance", names),
        checks.answer(document),
        "Tokens of a draft that the target accepts, on what it says itself.",
        (*sections, *checks.checks(document["report"]), Section("Facts", [Facts(pairs)])),
        (_UNSEEN, "No engine ran: speed is what `bench` measures."),
    )


def _positions(document: At, found: At, names: Sequence[str]) -> list[Section]:
    lines = {
        name: [(each["mean"].number, each["half_width"].number) for each in draft["sampled"]["positions"]]
        for name, draft in zip(names, found["drafts"], strict=True)
    }
    if not lines:
        return []
    curve = document["page"]["published"]
    steps = max(map(len, lines.values()))
    columns = ("draft", *(f"token {step + 1}" for step in range(steps)))
    rows: list[Sequence[Cell]] = [
        (Named(name), *(measured(draft["sampled"]["positions"][step]["mean"]) for step in range(steps)))
        for name, draft in zip(names, found["drafts"], strict=True)
    ]
    if curve:
        rows.append((curve["name"].text, *(measured(curve["gains"][step], 2) for step in range(steps))))
    title = "How often each drafted token is reached and accepted"
    over = ", with 95 % intervals over windows" if _has_intervals(found) else ""
    says = (
        f"By sampling, of all cycles{over}; a line a draft. The dashed line is what others published: its model,"
        " prompts and length are its own."
    )
    gains = [each.number for each in curve["gains"]][:steps]
    name = curve["name"].text
    table = Table(title, columns, rows)
    picture = pictured("positions", title, says, lambda: charts.positions(lines, gains, name), table)
    source = [Words(f"Dashed: {curve['source'].text}.")] if curve else []
    return [Section("Acceptance by position", [picture, *source])]


def _has_intervals(found: At) -> bool:
    """Whether there are windows to differ: of one there is no interval."""
    return found["n_windows"].number != 1


def _drawn(found: At, how: str) -> Section:
    """A table of one way of the target to go on."""
    steps = [f"token {n + 1}" for n in range(int(found["k"].number))]
    parts = ("mean", "half_width") if _has_intervals(found) else ("mean",)
    ends = ("tokens", "against_first")
    titles = {"tokens": "tokens a cycle", "against_first": "against the first", "half_width": "±"}
    columns = ("draft", *steps, *(titles.get(part, titles[key]) for key in ends for part in parts))
    rows: list[Sequence[Cell]] = []
    for draft in found["drafts"]:
        drawn = draft[how]
        positions = [measured(each["mean"], 3) for each in drawn["positions"]]
        rows.append((Named(draft["draft"].text), *positions, *(measured(drawn[k][p], 3) for k in ends for p in parts)))
    about = "By sampling" if how == "sampled" else "Greedily"
    return Section(about, [Table(f"{about}: reached and accepted, and tokens a cycle", columns, rows)])


def _named(drafts: Sequence[At]) -> list[str]:
    """The drafts by names that fit a heading."""
    return apart([draft["draft"].text for draft in drafts])


def _title(what: str, names: Sequence[str]) -> str:
    return f"{what} of {names[0]}" if len(names) == 1 else f"{what} of drafts" if names else what
