"""Figures of matplotlib from plain numbers: every one is drawn to be read at the width of a telephone.

Colours are told apart by every kind of colour vision (Okabe and Ito), and no series by its colour alone. A page puts
its own in their place, by `COLORS` and `INK`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from mtpforge.errors import shown
from mtpforge.reporting.naming import legends, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK: Final = "#000000"
_MARKERS: Final = "osD^vPX*"
_DASHES: Final[tuple[tuple[int, tuple[float, ...]], ...]] = (  # the evenly dashed line is what others published
    (0, ()),
    (0, (1, 1.5)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (6, 1.5, 1, 1.5, 1, 1.5)),
)
_WIDTH: Final = 4.2  # inches: a point is a pixel at the width that a telephone leaves
_SMALL: Final = 10  # points
_LINE: Final = 0.2  # inches of the legend
_APART: Final = 0.06  # of a step, between two lines
_SPREAD: Final = 0.3  # of a step, between the first and the last
_TIGHT: Final = {"fontsize": 9, "frameon": False, "handlelength": 1.5, "handletextpad": 0.3, "columnspacing": 0.9}
_UNITS: Final = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))

Estimate = tuple[float, float]  # a mean, and half of its interval


@dataclass(frozen=True, slots=True)
class Sized:
    """A draft by its size: bytes of the layer, how far its first step is off, what of it was lost in fact (or NaN)."""

    name: str
    n_bytes: float
    far: float
    lost: float


def size_against_loss(drafts: Sequence[Sized], dense_bytes: float, title: str = "") -> Figure:
    """Size of the layer to the right, total variation of the first step upwards, below it what was lost in fact.

    Drafts without both numbers are left out.
    """
    drafts = [draft for draft in drafts if math.isfinite(draft.n_bytes) and math.isfinite(draft.far)]
    figure, axes = _figure(3.0, len(drafts) + 2)
    one, unit = next((each for each in _UNITS if dense_bytes >= each[0]), _UNITS[-1])
    sizes = [draft.n_bytes / one for draft in drafts]
    names = legends([draft.name for draft in drafts])
    for name, draft, size, look in zip(names, drafts, sizes, _looks(), strict=False):
        axes.plot([size], [draft.far], label=name, **{**look, "linestyle": "none", "markersize": 7})
        if math.isfinite(draft.lost):
            axes.plot([size] * 2, [draft.far, draft.lost], color=look["color"], linewidth=0.8)
    lost = [(s, d.lost) for s, d in zip(sizes, drafts, strict=True) if math.isfinite(d.lost)]
    if lost:
        axes.plot(*zip(*lost, strict=True), "x", color=INK, label="lost beside the captured target")
    axes.axvline(dense_bytes / one, color=INK, linewidth=0.8, linestyle="--", label="the dense layer")
    axes.set_xlabel(f"layer, {unit}")
    axes.set_ylabel("of the first token's acceptance")
    axes.set_title(title, fontsize=_SMALL, loc="left")
    axes.margins(x=0.1, y=0.15)
    axes.locator_params(nbins=5)
    _legend(figure, axes)
    return figure


def positions(lines: Mapping[str, Sequence[Estimate]], published: Sequence[float], source: str) -> Figure:
    """How often each step is reached and accepted, a line a draft with 95 % intervals, beside a published curve."""
    figure, axes = _figure(3.0, len(lines) + bool(published))
    apart = min(_APART, _SPREAD / max(len(lines) - 1, 1))  # else they would hide each other's intervals
    first = -apart * (len(lines) - 1) / 2
    for n, (name, line, look) in enumerate(zip(legends(list(lines)), lines.values(), _looks(), strict=False)):
        at = [step + first + n * apart for step in range(1, len(line) + 1)]
        halves = [half if math.isfinite(half) else 0.0 for _, half in line]
        means = [mean if math.isfinite(mean) else math.nan for mean, _ in line]
        axes.plot(at, means, label=name, **look)
        axes.errorbar(at, means, halves, color=look["color"], fmt="none", capsize=3, elinewidth=1)
    if published:
        axes.plot(range(1, len(published) + 1), published, color=INK, linestyle="--", linewidth=1, label=short(source))
    axes.set_xlabel("drafted token")
    axes.set_ylabel("accepted, of all cycles")
    axes.set_xticks(range(1, max([len(published), *map(len, lines.values())]) + 1))
    axes.set_ylim(0, 1)
    _legend(figure, axes)
    return figure


def spread(kinds: Mapping[str, Sequence[float]], label: str) -> Figure:
    """A row a kind, a dot a value; the name stands above its dots, so that long ones take no width."""
    figure, axes = _figure(0.7 + 0.34 * len(kinds))
    for row, (kind, all_values) in enumerate(kinds.items()):
        values = list(filter(math.isfinite, all_values))
        axes.plot(values, [row + 0.1] * len(values), "o", markersize=4, color=COLORS[0], alpha=0.6)
        about = short(kind) if len(values) == len(all_values) else f"{short(kind)}: no number"
        axes.text(0.01, row - 0.28, about, transform=axes.get_yaxis_transform(), fontsize=_SMALL, va="center")
    return _rows(figure, axes, [value for values in kinds.values() for value in values], len(kinds), label)


def bars(rows: Sequence[tuple[str, float]], label: str) -> Figure:
    """A bar a name, the name above it; of a value that is no number it is said there."""
    figure, axes = _figure(0.7 + 0.4 * len(rows))
    for row, (name, value) in enumerate(rows):
        axes.barh(row, value if math.isfinite(value) else 0.0, height=0.3, color=COLORS[0])
        about = short(name) if math.isfinite(value) else f"{short(name)}: no number"
        axes.text(0.01, row - 0.33, about, transform=axes.get_yaxis_transform(), fontsize=_SMALL, va="center")
    return _rows(figure, axes, [value for _, value in rows], len(rows), label)


def experts(
    scores: Mapping[str, Sequence[float]], kept: Mapping[str, Sequence[int]], titles: Mapping[str, str]
) -> Figure:
    """One panel a method, a dot an expert of the source, a line where the cut is."""
    figure, panels = _panels(2.3 * len(scores) + 0.3, len(scores))
    for axes, (name, values) in zip(panels, scores.items(), strict=True):
        stays = frozenset(kept[name])
        for is_kept, color, marker, label in ((True, COLORS[0], "o", "kept"), (False, COLORS[1], "x", "dropped")):
            numbers = [n for n in range(len(values)) if (n in stays) == is_kept]
            heights = [values[number] for number in numbers]
            axes.plot(numbers, heights, marker, markersize=4, color=color, label=f"{len(numbers)} {label}")
        if (line := cut(values, stays)) is not None:
            axes.axhline(line, color=INK, linewidth=0.8, linestyle="--", label=f"cut {line:.4g}")
        axes.set_ylim(*_span(values))
        axes.set_title(shown(titles[name]), fontsize=10, loc="left")
        axes.legend(loc="upper right", ncols=3, **_TIGHT)
        axes.margins(x=0.02)
    figure.supxlabel("expert of the source", fontsize=10)
    return figure


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> Figure:
    """A line a name through its points (across, up), the lower axis by doublings."""
    figure, axes = _figure(3.0, len(lines))
    for name, points, look in zip(legends(list(lines)), lines.values(), _looks(), strict=False):
        axes.plot(*zip(*points, strict=True), label=name, **look)
    ticks = sorted({x for points in lines.values() for x, _ in points})
    if ticks and ticks[0] > 0:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    _legend(figure, axes)
    return figure


def cut(values: Sequence[float], kept: frozenset[int]) -> float | None:
    """Half-way between the nearest scores of both sides; None where nothing goes, or groups have cuts of their own."""
    stays = [value for number, value in enumerate(values) if number in kept]
    goes = [value for number, value in enumerate(values) if number not in kept]
    if not stays or not goes:
        return None
    for low, high in ((stays, goes), (goes, stays)):
        if max(low) <= min(high):
            middle = (max(low) + min(high)) / 2
            return middle if math.isfinite(middle) else None
    return None


def _figure(height: float, n_lines: int = 0) -> tuple[Figure, Axes]:
    """A figure and its axes, with room below for a legend of so many lines."""
    figure, (axes,) = _panels(height + _LINE * n_lines, 1)
    return figure, axes


def _panels(height: float, n: int) -> tuple[Figure, list[Axes]]:
    """A figure and a column of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    drawn = list(figure.subplots(n, squeeze=False)[:, 0])
    for axes in drawn:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, drawn


def _rows(figure: Figure, axes: Axes, values: Iterable[float], n: int, label: str) -> Figure:
    most = max(filter(math.isfinite, values), default=0.0) or 1.0
    axes.set_ylim(n - 0.5, -0.7)
    axes.set_yticks([])
    axes.set_xlim(0, most * 1.04)
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=6)
    axes.spines["left"].set_visible(False)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the axes: the drafts in their order, then what they stand beside."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda n: getattr(handles[n], "get_color", str)() == INK)
    chosen = [handles[n] for n in order], [labels[n] for n in order]
    figure.legend(*chosen, loc="outside lower left", fontsize=_SMALL, frameon=False)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """What the axis shows: differences are small beside some scores, so it does not begin at 0."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    room = (max(finite) - min(finite)) * 0.25 or 1.0
    return min(finite) - room / 2, max(finite) + room


def _looks() -> Iterator[dict[str, Any]]:
    """How lines are told apart: 32 of them without their colours, of which there are fewer."""
    for number, (dashes, marker) in enumerate(product(_DASHES, _MARKERS)):
        color = COLORS[number % len(COLORS)]
        yield {"color": color, "marker": marker, "markersize": 5, "linestyle": dashes, "linewidth": 1}
    yield from _looks()
