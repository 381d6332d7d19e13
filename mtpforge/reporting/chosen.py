"""What the page of prune-plan says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mtpforge.pruning import METHODS
from mtpforge.reporting import charts
from mtpforge.reporting.blocks import Block, Cell, Facts, Named, Page, Section, Table, Verdict
from mtpforge.reporting.drawing import pictured
from mtpforge.reporting.values import At, counted, scored


def chosen(document: At) -> Page:
    """The experts that stay, every score with its cut, how far the methods agree."""
    scores = dict(document["scores"].items())
    kept = {name: [int(n.number) for n in at] for name, at in document["choices"].items()}
    stays = [int(n.number) for n in document["kept"]]
    pairs: list[tuple[str, Cell]] = [
        ("chosen by", document["method"].text),
        ("experts of the source", counted(document["n_stored"])),
        ("kept", Named(", ".join(map(str, stays)))),
    ]
    if document["inputs"]:
        pairs += [(f"inputs, {key}", Named(at.text)) for key, at in document["inputs"].items()]
    sections = [Section("The choice", [Facts(pairs)])]
    if scores:
        sections.append(_scores(document, scores, kept, frozenset(stays)))
    if document["agreement"]:
        sections.append(_agreement(document["agreement"]))
    return Page(
        "Experts that stay",
        Verdict("chosen", "neutral"),
        "Which experts a draft would keep beside this target, by which scores.",
        sections,
        ("Nothing was built and nothing drafted: what the choice costs is what `fidelity` and `accept` ask.",),
    )


def titles(names: Sequence[str]) -> dict[str, str]:
    """A heading for the panel of each method."""
    return {name: f"{name}: {METHODS[name].drops} dropped" if name in METHODS else name for name in names}


def _scores(document: At, scores: dict[str, At], kept: dict[str, list[int]], stays: frozenset[int]) -> Section:
    rows: list[Sequence[Cell]] = [
        (str(number), *(scored(at[number]) for at in scores.values()), "kept" if number in stays else "dropped")
        for number in range(int(document["n_stored"].number))
    ]
    table = Table("Scores of all experts", ("expert", *scores, "chosen"), rows)
    drawn = {name: [each.number for each in at] for name, at in scores.items()}
    says = (
        "One panel a method, one mark an expert of the source by its number: dots stay, crosses go. A dashed line is"
        " the cut between them, where one line parts them."
    )
    if any(all(map(math.isnan, values)) for values in drawn.values()):
        return Section("Scores", [table])
    headings = titles(list(scores))
    picture = pictured(
        "experts", "Scores of the experts, and the cut", says, lambda: charts.experts(drawn, kept, headings), table
    )
    return Section("Scores", [picture])


def _agreement(agreement: At) -> Section:
    names = [name for name, _ in agreement.items()]
    rows: list[Sequence[Cell]] = [(one, *(counted(agreement[one][other]) for other in names)) for one in names]
    blocks: list[Block] = [Table("Experts that two methods both drop", ("method", *names), rows)]
    return Section("Agreement", blocks)
