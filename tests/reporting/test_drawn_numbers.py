"""Pictures draw the document's numbers: all of what is drawn is found there, and another number is another picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from itertools import pairwise

import pytest
from reporting.pages import NAMES, Read, followed, stored

from mtpforge.reporting import charts
from mtpforge.reporting.page import render

CHARTS = ("size_against_loss", "positions", "spread", "bars", "experts", "curves")


def numbers(value: object) -> set[float]:
    """Every number in it; of what is measured no other value is likely to be the same."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return set()
    if isinstance(value, int | float):
        return set() if math.isnan(value) else {float(value)}
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    items = value.values() if isinstance(value, Mapping) else value
    return set().union(*map(numbers, items))


def subtracted(document: dict) -> set[float]:
    """What is lost beside a target, and what one more token adds to a published curve."""
    drafts = document.get("fidelity", {}).get("drafts", [])
    lost = {step["acceptance_reference"] - step["acceptance"] for draft in drafts for step in draft["steps"]}
    curve = (document.get("bench") or {}).get("curve") or {}
    return lost | {after - before for before, after in pairwise([1.0, *curve.get("length", [])])}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "build-plan"])  # which has no picture
def test_every_number_that_is_drawn_is_the_document_s(name, monkeypatch):
    drawn: set[float] = set()

    def watched(draw):
        def watch(*arguments):
            drawn.update(*map(numbers, arguments))
            return draw(*arguments)

        return watch

    for chart in CHARTS:
        monkeypatch.setattr(charts, chart, watched(getattr(charts, chart)))
    document = Read(render(stored(name))).document
    assert len(drawn) > 3
    assert drawn - numbers(document) - subtracted(document) == set()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "pointer"),
    [
        ("build", "/report/facts/relative_error/self_attn.o_proj"),
        ("validate", "/report/facts/relative_error/self_attn.o_proj"),
        ("verify", "/report/facts/relative_error/self_attn.o_proj"),
        ("fidelity", "/fidelity/drafts/0/steps/0/total_variation"),
        ("fidelity", "/fidelity/drafts/1/steps/0/acceptance"),
        ("fidelity", "/fidelity/drafts/0/n_bytes"),
        ("fidelity", "/fidelity/reference_bytes"),
        ("fidelity", "/fidelity/drafts/0/swaps/0/total_variation"),
        ("accept", "/acceptance/drafts/1/sampled/positions/1/mean"),
        ("accept", "/acceptance/drafts/1/sampled/positions/1/half_width"),
        ("bench", "/bench/totals/1/speed"),
        ("bench", "/bench/totals/1/speed_without"),
        ("bench", "/bench/cells/0/positions/1"),
        ("bench", "/bench/curve/length/1"),
        ("prune-plan", "/scores/bias/3"),
    ],
)
def test_other_number_is_another_picture(name, pointer):
    document = stored(name)
    *way, last = pointer.split("/")
    place = followed(document, "/".join(way))
    key = int(last) if isinstance(place, list) else last
    before = drawings(document)
    place[key] *= 0.7
    assert drawings(document) != before


def drawings(document: dict) -> list[str]:
    """What stands in the pictures of its page."""
    return [part.partition("</svg>")[0] for part in render(document).split("<svg ")[1:]]
