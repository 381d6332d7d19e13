"""What the pages of fidelity and accept say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from mtpforge.reporting import charts, checks
from mtpforge.reporting.blocks import Block, Cell, Facts, Named, Page, Section, Table, Verdict, Words
from mtpforge.reporting.charts import Sized
from mtpforge.reporting.drawing import pictured
from mtpforge.reporting.values import At, counted, difference, measured, sized

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW: Final = 20  # single modules of a table; all of them are in the document
_SYNTHETIC: Final = "Inputs are synthetic: they show that nothing is broken, and rank nothing."
_UNSEEN: Final = "Activations are not quantized here, as engines of W4A4 and FP8 do it."
_STEPS: Final = ("step", "rows", "total variation", "KL", "same token", "states off", "routing", "accepted", "dense")
_SWAPS: Final = ("module", "rows", "weights off", "states off", "total variation")
_RANKS: Final = ("draft", "size", "experts", "total variation", "KL", "accepted", "lost", "answer")


def compared(document: At) -> Page:
    """Of fidelity: sizes against what is lost, then each draft with its steps and modules."""
    found = document["fidelity"]
    drafts = list(found["drafts"])
    best = [each.text for each in document["ranked"]]
    drafts.sort(key=lambda draft: best.index(draft["draft"].text) if draft["draft"].text in best else len(best))
    sections = [_ranked(found, drafts), *checks.checks(document["report"])]
    for number, draft in enumerate(drafts):
        sections += _draft(draft, number)
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
    lead = (f"Nearest to the dense layer: `{_last(drafts[0])}`." if many else "") if drafts else ""
    return Page(
        "Fidelity of drafts" if many else f"Fidelity of {_last(drafts[0])}" if drafts else "Fidelity",
        checks.answer(document),
        lead or "Predictions of the draft beside the dense layer's, on the same inputs.",
        (*sections, Section("Facts", [Facts(pairs)])),
        (_UNSEEN, *([_SYNTHETIC] if found["is_synthetic"] else [])),
    )


_INPUTS: Final = (("captured from", "captured_from"), ("inputs, sha256", "inputs"))


def _ranked(found: At, drafts: Sequence[At]) -> Section:
    rows: list[Sequence[Cell]] = []
    for draft in drafts:
        step = draft["steps"][0]
        lost = difference(step["acceptance_reference"], step["acceptance"])
        numbers = (measured(step["total_variation"]), measured(step["divergence"]), measured(step["acceptance"]), lost)
        broken = any(check["verdict"].value == "failed" for check in draft["checks"])
        word = Verdict("clearly broken", "failed") if broken else Verdict("not broken", "passed")
        size = (sized(draft["n_bytes"]), counted(draft["n_experts"]))
        rows.append((Named(draft["draft"].text), *size, *numbers, word))
    table = Table("Drafts, nearest to the dense layer first", _RANKS, rows)
    if not any(draft["steps"] for draft in drafts):
        return Section("Size against loss", [table])
    says = (
        "Each draft by the size of its layer and the total variation of its first step: no target can lose more of the"
        " first token's acceptance on these inputs. Crosses show what was lost beside the captured target, where one is"
        " known; the dashed line is the dense layer's size."
    )
    picture = pictured("sizes", "Size against loss", says, lambda: size_against_loss(found), table)
    return Section("Size against loss", [picture, table])


def size_against_loss(found: At) -> Figure:
    """The drafts of a Fidelity by the size of their layers; those that could not be computed are left out."""
    points = [
        Sized(
            _last(draft),
            draft["n_bytes"].number,
            step["total_variation"].number,
            step["acceptance_reference"].number - step["acceptance"].number,
        )
        for draft in found["drafts"]
        for step in list(draft["steps"])[:1]
    ]
    title = "synthetic inputs" if found["is_synthetic"] else f"{found['n_tokens'].number:,.0f} captured tokens"
    return charts.size_against_loss(points, found["reference_bytes"].number, title)


def _draft(draft: At, number: int) -> list[Section]:
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
    blocks: list[Block] = [Table(f"Steps of {_last(draft)}", _STEPS, rows)]
    kinds = [swap for swap in draft["swaps"] if not swap["module"]]
    single = [swap for swap in draft["swaps"] if swap["module"] and swap["state_error"]][:_FEW]
    if cost := [(s["kind"].text, s["total_variation"].number) for s in kinds if s["total_variation"]]:
        says = (
            "All modules of a kind of the draft's put into the dense layer together: total variation of the first step"
            " with and without them. The longest bar is what costs most."
        )
        table = Table("Cost of kinds", _SWAPS, [_swap(swap, "kind") for swap in kinds])
        title = f"What each kind of module costs {_last(draft)}"
        blocks.append(pictured(f"kinds{number}", title, says, lambda: charts.bars(cost, "total variation"), table))
    if single:
        blocks.append(Table("Single modules that cost most", _SWAPS, [_swap(swap, "module") for swap in single]))
    return [Section(f"Draft {_last(draft)}", blocks)]


def _swap(swap: At, name: str) -> Sequence[Cell]:
    numbers = (measured(swap[key]) for key in ("weight_error", "state_error", "total_variation"))
    return (Named(swap[name].text), counted(swap["n_rows"]), *numbers)


def accepted(document: At) -> Page:
    """Of accept: acceptance by position beside the published curve, then tokens a cycle."""
    found = document["acceptance"]
    drafts = list(found["drafts"])
    sections = [_positions(document, found), *(_drawn(found, how) for how in ("sampled", "greedy"))]
    pairs: list[tuple[str, Cell]] = [
        ("target", Named(found["target"].text)),
        ("windows", counted(found["n_windows"])),
        ("tokens of a prompt", counted(found["length"])),
        ("tokens that the target adds", counted(found["generate"])),
        ("temperature", measured(found["temperature"], 2)),
        ("state handed on", found["recycled"].text),
    ]
    return Page(
        f"Acceptance of {_last(drafts[0])}" if len(drafts) == 1 else "Acceptance of drafts",
        checks.answer(document),
        "Tokens of a draft that the target accepts, on what it says itself.",
        (*sections, *checks.checks(document["report"]), Section("Facts", [Facts(pairs)])),
        (_UNSEEN, "No engine ran: speed is what `bench` measures."),
    )


def _positions(document: At, found: At) -> Section:
    lines = {
        _last(draft): [(each["mean"].number, each["half_width"].number) for each in draft["sampled"]["positions"]]
        for draft in found["drafts"]
    }
    curve = document["page"]["published"]
    steps = max([len(list(curve["gains"])), *map(len, lines.values())])
    columns = ("drafted token", *lines, *([curve["name"].text] if curve else []))
    rows: list[Sequence[Cell]] = [
        (
            str(step + 1),
            *(measured(draft["sampled"]["positions"][step]["mean"]) for draft in found["drafts"]),
            *([measured(curve["gains"][step], 2)] if curve else []),
        )
        for step in range(steps)
    ]
    title = "How often each drafted token is reached and accepted"
    says = (
        "By sampling, of all cycles, with 95 % intervals over windows; a line a draft. The dashed line is what others"
        " published: its model, prompts and length are its own."
    )
    gains = [each.number for each in curve["gains"]]
    name = curve["name"].text
    table = Table(title, columns, rows)
    picture = pictured("positions", title, says, lambda: charts.positions(lines, gains, name), table)
    source = [Words(f"Dashed: {curve['source'].text}.")] if curve else []
    return Section("Acceptance by position", [picture, *source])


def _drawn(found: At, how: str) -> Section:
    """A table of one way of the target to go on."""
    steps = [f"token {n + 1}" for n in range(int(found["k"].number))]
    columns = ("draft", *steps, "tokens a cycle", "±", "against the first", "±")
    rows: list[Sequence[Cell]] = []
    for draft in found["drafts"]:
        drawn = draft[how]
        positions = [measured(each["mean"], 3) for each in drawn["positions"]]
        ends = [measured(drawn[key][part], 3) for key in ("tokens", "against_first") for part in ("mean", "half_width")]
        rows.append((Named(draft["draft"].text), *positions, *ends))
    about = "By sampling" if how == "sampled" else "Greedily"
    return Section(about, [Table(f"{about}: reached and accepted, and tokens a cycle", columns, rows)])


def _last(draft: At) -> str:
    named = draft["draft"].text
    return PurePath(named).name or named
