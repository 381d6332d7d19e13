"""Results as they seldom are: drafts of one name, numbers that are none, nothing to draw, more lines than colours."""

from __future__ import annotations

import itertools
import math

import pytest
from matplotlib.colors import to_rgb
from reporting.pages import NAMES, Read, stored, wrong_numbers

from mtpforge.report import plain
from mtpforge.reporting import charts
from mtpforge.reporting.naming import apart, legends
from mtpforge.reporting.page import render


def headings(text: str) -> list[str]:
    return [words for _, words in Read(text).all("h1", "h2")]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["out/d1", "out/d2"], ["d1", "d2"]),
        (["a/int4", "b/int4", "b/fp8"], ["a/int4", "b/int4", "fp8"]),
        (["/x/int4", "/int4", "int4"], ["x/int4", "/int4", "int4"]),
        (["out/int4", "out/int4", "out/int4"], ["int4", "int4 (2)", "int4 (3)"]),
        (["int4 (2)", "out/int4", "int4", "int4"], ["int4 (2)", "out/int4", "int4", "int4 (3)"]),
        ([".", ".."], [".", ".."]),
    ],
)
def test_names_of_drafts_are_short_and_no_two_the_same(names, told):
    assert apart(names) == told


def test_long_names_of_lines_are_told_apart():
    told = legends(["a" * 80, "b" + "a" * 79, "c"])
    assert len(set(told)) == 3
    assert max(map(len, told)) <= 34


def test_drafts_of_one_name_have_a_line_and_a_row_each():
    document = stored("accept")
    for draft, name in zip(document["acceptance"]["drafts"], ("one/int4", "two/int4"), strict=True):
        draft["draft"] = name
    text = render(document)
    (table,) = [words for _, words in Read(text).all("table") if words.startswith("How often each drafted token")]
    (drawn,) = [words for _, words in Read(text).all("svg") if words.startswith("How often each drafted token")]
    assert all(name in table and name in drawn for name in ("one/int4", "two/int4"))
    assert wrong_numbers(text) == []
    for position in range(2):
        for number in range(2):
            pointer = f'data-at="/acceptance/drafts/{number}/sampled/positions/{position}/mean"'
            assert text.count(pointer) == 2  # beside the picture, and in the table of all of them


def test_tables_of_several_drafts_have_names_of_their_own():
    document = stored("fidelity")
    one, two = document["fidelity"]["drafts"]
    two["swaps"] = one["swaps"]
    captions = [words for _, words in Read(render(document)).all("caption")]
    assert len(captions) == len(set(captions)) > 6


def test_draft_that_is_called_draft_is_not_named_twice_in_a_row():
    document = stored("fidelity")
    for number, draft in enumerate(document["fidelity"]["drafts"]):
        draft["draft"] = f"{number}/draft"
    found = headings(render(document))
    found += headings(render(stored("verify") | {"command": "build", "draft": "out/draft", "manifest": {}}))
    assert not [words for words in found if "draft draft" in words.lower()]
    assert "Build of draft" in found


def spoiled(value: object, number: float) -> object:
    """Every number with a fraction, as something that is none."""
    match value:
        case dict():
            return {key: spoiled(item, number) for key, item in value.items()}
        case list():
            return [spoiled(item, number) for item in value]
        case float():
            return number
    return value


@pytest.mark.sampled(3)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "build-plan"])  # which counts, and measures nothing
def test_numbers_that_are_none_are_shown_as_what_they_are(name, number):
    document = plain(spoiled(stored(name), number))
    assert document != stored(name)
    text = render(document)
    assert str(number) in [words for _, words in Read(text).all("td")]
    assert wrong_numbers(text) == []


def test_one_kind_that_is_no_number_is_named_beside_the_others():
    document = stored("fidelity")
    draft = document["fidelity"]["drafts"][0]
    kinds = [swap for swap in draft["swaps"] if not swap["module"]]
    kinds[0]["total_variation"] = "nan"
    assert f"{kinds[0]['kind']}: no number" in render(document)


def test_weight_that_is_no_number_is_the_worst_of_its_kind():
    document = stored("verify")
    errors = document["report"]["facts"]["relative_error"]
    name = next(name for name, value in errors.items() if ".experts." in name and value > 0)
    errors[name] = "inf"
    rows = [words for attrs, words in Read(render(document)).all("tr") if words.startswith(name)]
    assert rows == [f"{name}inf"]


@pytest.mark.parametrize(("name", "key"), [("fidelity", "fidelity"), ("accept", "acceptance")])
def test_result_without_a_draft_is_a_page_too(name, key):
    document = stored(name)
    document[key]["drafts"], document["ranked"] = [], []
    text = render(document)
    assert headings(text)[0] == {"fidelity": "Fidelity", "accept": "Acceptance"}[name]
    assert not Read(text).all("svg")


def test_one_draft_is_no_picture_of_one_dot():
    document = stored("fidelity")
    del document["fidelity"]["drafts"][1:]
    text = render(document)
    assert "Size against loss" not in headings(text)
    assert "No target can lose more" in text
    document = stored("bench")
    fewest = min(total["concurrency"] for total in document["bench"]["totals"])
    for cells in ("cells", "totals"):
        document["bench"][cells] = [each for each in document["bench"][cells] if each["concurrency"] == fewest]
    titles = [words for _, words in Read(render(document)).all("title")]
    assert "Speed by requests at a time" not in titles
    assert "Speed by requests at a time" in [words for _, words in Read(render(stored("bench"))).all("title")]


def test_one_window_is_told_without_intervals():
    document = stored("accept")
    many = render(document)
    assert "95 % intervals over windows" in many
    assert [words for _, words in Read(many).all("th")].count("±") == 4  # of two tables
    document["acceptance"]["n_windows"] = 1
    for draft in document["acceptance"]["drafts"]:
        for how in ("sampled", "greedy"):
            for each in (*draft[how]["positions"], draft[how]["tokens"], draft[how]["against_first"]):
                if each is not None:
                    each["half_width"] = None
    text = render(document)
    assert "interval" not in text
    titles = [words for _, words in Read(text).all("th")]
    assert "±" not in titles
    assert titles.count("tokens a cycle") == titles.count("against the first") == 2
    assert wrong_numbers(text) == []


@pytest.mark.parametrize("chart", ["positions", "curves"])
def test_lines_differ_without_their_colours(chart):
    lines = {f"draft {number}": [(1.0, 0.5), (2.0, 0.4)] for number in range(32)}
    figure = charts.positions(lines, [0.8, 0.6], "others") if chart == "positions" else charts.curves(lines, "x", "y")
    drawn = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    looks = [(line.get_marker(), tuple(line._unscaled_dash_pattern[1] or ())) for line in drawn]
    assert len(looks) == len(set(looks)) == len(lines) + (chart == "positions")
    if chart == "positions":
        (legend,) = figure.legends
        assert legend.get_texts()[-1].get_text() == "others"
        assert to_rgb(drawn[-1].get_color()) == to_rgb(charts.INK)
    together = [(line.get_color(), *look) for line, look in zip(drawn, looks, strict=True)]
    assert all(one[0] != two[0] for one, two in itertools.pairwise(together))
