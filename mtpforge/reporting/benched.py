"""What the page of bench says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from mtpforge.errors import shown
from mtpforge.reporting import charts, checks
from mtpforge.reporting.blocks import Block, Cell, Command, Facts, Named, Page, Section, Table, Words
from mtpforge.reporting.drawing import pictured
from mtpforge.reporting.values import At, counted, measured

_ALL = "all content"


def benched(document: At) -> Page:
    """Of bench: speed over the number of requests, acceptance by position, depths, causes."""
    found, report = document["bench"], document["report"]
    pairs: list[tuple[str, Cell]] = [
        ("server that drafts", Named(_host(found["url"]))),
        ("server that does not", Named(_host(found["baseline"]) or "none")),
        ("engine", found["engine"].text),
        ("dataset", Named(found["dataset"].text)),
        ("tokens of a reply, at most", counted(found["generate"])),
        ("temperature", measured(found["temperature"], 2)),
    ]
    sections = [_speed(found), *_positions(found), *checks.checks(report), *_causes(found), *_depths(found)]
    return Page(
        f"Drafting of {found['model'].text}",
        checks.answer(document),
        report["summary"].text,
        (*sections, Section("Facts", [Facts(pairs)])),
        ("Whether answers are right was not looked at: only how many tokens come, and how fast.",),
    )


def _host(url: At) -> str:
    """An address without its scheme: a page has nothing that could be fetched."""
    return url.text.rpartition("://")[2]


def _speed(found: At) -> Section:
    """All requests together, over their number."""
    columns = ("content", "at a time", "tokens a round", "tokens/s", "without", "gain", "from", "to")
    rows: list[Sequence[Cell]] = [
        (
            cell["content"].text or _ALL,
            counted(cell["concurrency"]),
            measured(cell["length"]["mean"], 2),
            measured(cell["speed"], 1),
            measured(cell["speed_without"], 1),
            *(measured(cell["gain"][key], 2) for key in ("mean", "low", "high")),
        )
        for cells in ("cells", "totals")
        for cell in found[cells]
    ]
    table = Table("Tokens a round and speed; gains with 95 % intervals, prompts paired", columns, rows)
    drawn = {
        name: points
        for name, key in (("drafting", "speed"), ("without", "speed_without"))
        if (points := _points(found, key))
    }
    says = "Tokens a second of all requests together, all content, by how many are under way."
    title = "Speed by requests at a time"
    if len({x for points in drawn.values() for x, _ in points}) < 2:  # noqa: PLR2004 -- one dot is no curve
        return Section(title, [table])
    across, up = "requests at a time", "tokens a second"
    return Section(title, [pictured("speed", title, says, lambda: charts.curves(drawn, across, up), table)])


def _points(found: At, key: str) -> list[tuple[float, float]]:
    points = sorted((total["concurrency"].number, total[key].number) for total in found["totals"])
    return [point for point in points if not math.isnan(point[1])]


def _positions(found: At) -> list[Section]:
    """A line a class of content, at the fewest requests at a time."""
    cells = list(found["cells"])
    fewest = min((cell["concurrency"].number for cell in cells), default=0)
    drawn = [cell for cell in cells if cell["concurrency"].number == fewest and cell["positions"]]
    if not drawn:
        return []
    steps = max(len(list(cell["positions"])) for cell in drawn)
    rows: list[Sequence[Cell]] = [
        (str(step + 1), *(measured(cell["positions"][step], 3) for cell in drawn)) for step in range(steps)
    ]
    lines = {cell["content"].text: [(each.number, math.nan) for each in cell["positions"]] for cell in drawn}
    curve = found["curve"]
    lengths = [1.0, *(each.number for each in curve["length"])][: steps + 1]
    gains = [after - before for before, after in pairwise(lengths)]
    title = "How often each drafted token is reached and accepted"
    says = "Of all rounds, by the server's own counters; a line a class of content, at the fewest requests at a time."
    if curve:
        says += f" The dashed line is what {curve['name'].text} gave others."
    table = Table(title, ("drafted token", *lines), rows)
    name = shown(f"{curve['name'].text}, published") if curve else ""
    picture = pictured("positions", title, says, lambda: charts.positions(lines, gains, name), table)
    source = [Words(f"Dashed: {curve['source'].text}; {curve['conditions'].text}.")] if curve else []
    return [Section("Acceptance by position", [picture, *source])]


def _causes(found: At) -> list[Section]:
    rows: list[Sequence[Cell]] = [(cause["what"].text, cause["check"].text) for cause in found["causes"]]
    if not rows:
        return []
    return [Section("Likely causes", [Table("The likeliest first", ("what it may be", "what tells"), rows)])]


def _depths(found: At) -> list[Section]:
    """Depths at each number of requests, and the engine's option for them."""
    rows: list[Sequence[Cell]] = [
        (
            counted(each["concurrency"]),
            counted(depth["k"]),
            measured(depth["length"], 2),
            measured(depth["gain"], 2),
            "as measured" if depth["measured"] else "by the curve",
        )
        for each in found["advice"]
        for depth in each["depths"]
    ]
    if not rows:
        return []
    columns = ("at a time", "k", "tokens a round", "decoding, times as fast", "how it is known")
    blocks: list[Block] = [Table("What each depth would give", columns, rows)]
    if found["schedule"]:
        blocks += [
            Words(f"Depth by batch size, keys of `{found['schedule_option'].text}`:"),
            Command(found["schedule"].text),
        ]
    return [Section("Depth", blocks)]
