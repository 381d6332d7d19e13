"""Means with 95 % intervals: of ratios of sums, over independent units.

    length    accepted tokens by rounds, units are slices of different prompts (or single replies)
    gain      speed with drafts by speed without, units are slices of prompts, both sides of each paired

A ratio r = sum(a) / sum(b) has the residuals a - r b; their scatter is its error (Cochran, Sampling Techniques, 6.4).
Of several classes of content together, their scatter within each class (6.11): the classes are chosen, no sample of
others, and what one has more of than another is no error. Student's t, since units may be few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import variance
from typing import Final

# Student's t, 97.5 %, 1 to 30 degrees of freedom: any table of it, as `scipy.stats.t.ppf(0.975, n)` gives them
_T: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_ROUNDING: Final = 1e-9  # of degrees of freedom that are whole


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval; low and high are None where one unit has none."""

    mean: float
    low: float | None
    high: float | None

    def is_above(self, value: float) -> bool:
        """Whether all of it is."""
        return self.low is not None and self.low > value

    def is_below(self, value: float) -> bool:
        """Whether all of it is."""
        return self.high is not None and self.high < value

    def __str__(self) -> str:
        """For people."""
        span = "" if self.low is None or self.high is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.mean:.2f}{span}"


def t_975(freedom: int) -> float:
    """Half the width of a 95 % interval in standard errors; beyond the table its expansion in 1 / freedom."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom


def length(accepted: Sequence[float], rounds: Sequence[float], k: int = 0, classes: Sequence[str] = ()) -> Interval:
    """Tokens a round, the target's own counted: 1 to 1 + k, k 0 if not known.

    Of each unit: accepted tokens, rounds, its class of content (() for one class).
    """
    total = sum(rounds)
    if not total:
        return Interval(1.0, None, None)
    ratio = sum(accepted) / total
    half = _half([a - ratio * n for a, n in zip(accepted, rounds, strict=True)], classes)
    if half is None:
        return Interval(1 + ratio, None, None)
    half /= total
    return Interval(1 + ratio, max(1.0, 1 + ratio - half), min(1 + (k or math.inf), 1 + ratio + half))


@dataclass(frozen=True, slots=True)
class Pair:
    """One slice on both servers: tokens and seconds of its replies, with drafts and without."""

    tokens: float
    seconds: float
    tokens_without: float
    seconds_without: float


def gain(pairs: Sequence[Pair], classes: Sequence[str] = ()) -> Interval:
    """Tokens a second with drafts, by those without. On a logarithmic scale, so that 2 and 1/2 are as far from 1.

    classes: the class of content of each pair, () for one class.
    """
    n = len(pairs)
    mean = [sum(column) / n for column in zip(*(_columns(pair) for pair in pairs), strict=True)]
    ratio = mean[0] * mean[3] / (mean[1] * mean[2])
    signs = (1, -1, -1, 1)
    scatter = [sum(s * v / m for s, v, m in zip(signs, _columns(pair), mean, strict=True)) for pair in pairs]
    half = _half(scatter, classes)
    if half is None:
        return Interval(ratio, None, None)
    factor = math.exp(half / n)
    return Interval(ratio, ratio / factor, ratio * factor)


def _columns(pair: Pair) -> tuple[float, float, float, float]:
    return pair.tokens, pair.seconds, pair.tokens_without, pair.seconds_without


def _half(residuals: Sequence[float], classes: Sequence[str]) -> float | None:
    """Half the width of the 95 % interval of their sum; None where a class has one alone, and with it no scatter."""
    by_class: dict[str, list[float]] = {}
    for each, name in zip(residuals, classes or [""] * len(residuals), strict=True):
        by_class.setdefault(name, []).append(each)
    if min(map(len, by_class.values())) < 2:  # noqa: PLR2004 -- one unit has no scatter
        return None
    found = [(len(some) * variance(some), len(some) - 1) for some in by_class.values()]
    total = sum(error for error, _ in found)
    if not total:
        return 0.0
    # Satterthwaite's, for classes that scatter differently: between the fewest of one class and those of all together
    freedom = total**2 / sum(error**2 / n for error, n in found)
    return t_975(int(freedom + _ROUNDING)) * math.sqrt(total)
