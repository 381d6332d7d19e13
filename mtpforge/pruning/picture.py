"""The scores of a layer's experts as a picture: one panel a method, a dot an expert, a line where the cut is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge import errors
from mtpforge.errors import MtpforgeError, shown
from mtpforge.pruning import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KEPT, _DROPPED = "#0072b2", "#d55e00"  # told apart by every kind of colour vision (Okabe and Ito)
_SUFFIXES: Final = (".png", ".svg", ".pdf")
_PANEL: Final = (9.0, 2.4)  # inches


def refuse(path: Path) -> None:
    """MtpforgeError where no picture could be drawn there: no library, or a suffix that it does not write."""
    if path.suffix.lower() not in _SUFFIXES:
        raise MtpforgeError(
            f"`{shown(path)}` is no name of a picture",
            where="option `--picture`",
            why=f"the suffix decides: {', '.join(_SUFFIXES)}",
            fix=f"`--picture {shown(path.with_suffix('.png'))}`",
            code=errors.USAGE,
        )
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MtpforgeError(
            "a picture needs matplotlib, which is not installed",
            where="option `--picture`",
            fix="`pip install 'mtpforge[plots]'`, or leave `--picture` out",
            code=errors.MACHINE,
        ) from error


def draw(path: Path, scores: Mapping[str, Sequence[float]], kept: Mapping[str, Sequence[int]]) -> None:
    """Write the picture. scores: by method, one per expert; kept: the experts that each method keeps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PANEL[0], _PANEL[1] * len(scores) + 0.4), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(len(scores), squeeze=False)[:, 0], scores.items(), strict=True):
        stays = frozenset(kept[name])
        for numbers, color, label in (
            ([n for n in range(len(values)) if n in stays], _KEPT, "kept"),
            ([n for n in range(len(values)) if n not in stays], _DROPPED, "dropped"),
        ):
            heights = [values[number] for number in numbers]
            axes.plot(numbers, heights, "o", markersize=4, color=color, label=f"{len(numbers)} {label}")
        if (line := cut(values, stays)) is not None:
            axes.axhline(line, color="black", linewidth=0.8, linestyle="--", label=f"cut {line:.4g}")
        axes.set_ylim(*_span(values))
        axes.set_title(f"{name}: {METHODS[name].drops} dropped", fontsize="medium", loc="left")
        axes.legend(fontsize="small", loc="upper right", ncols=3)
        axes.margins(x=0.01)
    figure.supxlabel("expert of the source")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure. MtpforgeError where the place cannot be written."""
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise MtpforgeError(
            f"`{shown(path)}` cannot be written",
            where="option `--picture`",
            why=error.strerror or str(error),
            code=errors.MACHINE,
        ) from error


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


def _span(values: Sequence[float]) -> tuple[float, float]:
    """What the axis shows: differences are small beside some scores, so it does not begin at 0."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    room = (max(finite) - min(finite)) * 0.25 or 1.0
    return min(finite) - room / 2, max(finite) + room
