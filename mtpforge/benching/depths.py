"""Which depth would be fastest: the curve of acceptance as measured, the cost of a step by both servers.

A round without drafts takes 1 / speed seconds of a request; one with k drafted tokens took length / speed. The
difference, shared over the k tokens, is what a drafted token costs: its step of the draft and its place in the
verification by the target. Depth j then makes 1 + a1 + ... + aj tokens in t + j * cost seconds. Acceptance of a
position does not hang on how many come after it; that the cost is the same at every depth is an assumption, and told.
So a depth is advised only where the one that was measured is proven faster, none where it is proven slower, and where
neither is proven that is told. Nothing at all is said where drafted tokens would have to cost less than nothing: then
both servers differ in something else than the draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mtpforge.benching.found import Cell

_NOISE: Final = 1.05  # by so much a gain may be measured too high


@dataclass(frozen=True, slots=True)
class Depth:
    """One depth at one number of requests: tokens a round, speed by that without drafts; measured: as it is served."""

    k: int
    length: float
    gain: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Advice:
    """At one number of requests. draft_cost: of a drafted token, as a share of a round without.

    best: the fastest depth where the one that was measured is proven to pay; 0 where it is proven to lose, as that
    fewer steps would pay is not proven then; None where neither is, or none of them decodes faster.
    """

    concurrency: int
    draft_cost: float
    depths: tuple[Depth, ...]
    best: int | None


def is_possible(total: Cell) -> bool:
    """Whether drafts can have made decoding so much faster: by as many tokens as a round has, at most.

    True where that is not known: nothing was compared, or no round was counted.
    """
    return total.decode_gain is None or not total.n_rounds or total.decode_gain <= _NOISE * total.length.mean


def advised(
    concurrency: int, positions: Sequence[float], gain: float, wanted: Sequence[int], *, pays: bool | None
) -> Advice:
    """positions: how often drafted token 1, 2, ... is accepted, of all rounds; gain: of decoding at that depth.

    pays: whether that depth is faster as it was measured, prompts included; None where neither is proven.
    """
    own = len(positions)
    cost = max(0.0, ((1 + sum(positions)) / gain - 1) / own)
    depths = tuple(_depth(k, positions, cost, gain) for k in sorted(set(wanted) or range(1, own + 1)) if k <= own)
    fastest = max(depths, key=lambda depth: depth.gain, default=None)
    best = fastest.k if pays and fastest is not None and fastest.gain > 1 else None
    return Advice(concurrency, cost, depths, 0 if pays is False else best)


def _depth(k: int, positions: Sequence[float], cost: float, gain: float) -> Depth:
    length, is_own = 1 + sum(positions[:k]), k == len(positions)
    return Depth(k, length, gain if is_own else length / (1 + k * cost), is_own)


def schedule(advice: Sequence[Advice]) -> tuple[tuple[int, int, int], ...]:
    """First and last batch size and depth. A range ends where it was measured: there drafting pays least of it.

    () where the depth of some number of requests is not known: an engine would take the one of fewer.
    """
    known = [(each.concurrency, each.best) for each in advice if each.best is not None]
    if len(known) < len(advice):
        return ()
    rows: list[tuple[int, int, int]] = []
    first = 1
    for concurrency, best in sorted(known):
        if rows and rows[-1][2] == best:
            rows[-1] = (rows[-1][0], concurrency, best)
        else:
            rows.append((first, concurrency, best))
        first = concurrency + 1
    return tuple(rows)
