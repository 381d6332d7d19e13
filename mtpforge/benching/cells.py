"""A cell of the table from its slices: acceptance by the counters, speed by the replies.

As many requests are under way as asked for until the last prompt of a slice was sent and one reply after that is whole;
what comes later runs among fewer, and faster. So speed is counted until that moment: replies that go on beyond it count
with the part before it, each event with as many tokens as the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from mtpforge.benching import counting, estimates
from mtpforge.benching.estimates import Pair
from mtpforge.benching.found import Cell
from mtpforge.benching.measuring import Measured, Taken, pooled
from mtpforge.benching.streaming import Reply


@dataclass(frozen=True, slots=True)
class Busy:
    """Of replies while all of them were under way: tokens, and the seconds of their requests together.

    later_tokens, later_seconds: of them those after each first token.
    """

    tokens: float
    seconds: float
    later_tokens: float
    later_seconds: float


def busy(replies: Sequence[Reply]) -> Busy:
    """Of one slice on one server."""
    last = max(reply.began for reply in replies)
    end = min(reply.began + reply.seconds for reply in replies if reply.began + reply.seconds > last)
    return _summed(_until(reply, end - reply.began) for reply in replies)


def _until(reply: Reply, seconds: float) -> Busy:
    """Its part before so many seconds of it have passed."""
    spent, later = min(reply.seconds, seconds), reply.seconds - reply.first
    later_spent = max(0.0, spent - reply.first)
    share = later_spent / later if later else float(spent >= reply.first)
    if reply.later:
        share = bisect_right(reply.later, spent) / len(reply.later)
    later_tokens = (reply.tokens - 1) * share
    return Busy(later_tokens + (spent >= reply.first), spent, later_tokens, later_spent)


def _summed(some: Iterable[Busy]) -> Busy:
    rows = [(each.tokens, each.seconds, each.later_tokens, each.later_seconds) for each in some]
    return Busy(*(sum(column) for column in zip(*rows, strict=True)))


def cell(content: str, concurrency: int, found: Sequence[Measured], steps: int = 0) -> Cell:
    """Of one class, or of several together. steps: draft steps as the server tells them, 0 where it does not."""
    units = pooled(found)
    total = counting.summed(units)
    is_told = total.positions or not total.accepted  # nothing accepted is nothing at each position
    counted = (*total.positions, *(0.0 for _ in range(steps - len(total.positions)) if is_told))
    most = max(steps, len(total.positions))  # accepted in a round, also where no position is told
    on = [busy(each.drafting.replies) for each in found]
    off = [busy(each.without.replies) for each in found if each.without]
    # Prompts of one slice run together: what slows one slows all. So a slice is the unit, as it is for the counters.
    pairs = [Pair(a.tokens, a.seconds, b.tokens, b.seconds) for a, b in zip(on, off, strict=True)] if off else []
    return Cell(
        content=content,
        concurrency=concurrency,
        n_prompts=sum(len(each.drafting.replies) for each in found),
        n_rounds=round(total.rounds),
        length=estimates.length(
            [unit.accepted for unit in units],
            [unit.rounds for unit in units],
            most,
            [each.slice.content for each in found for _ in each.drafting.units],
        ),
        positions=tuple(n / total.rounds for n in counted) if total.rounds else (),
        speed=_speed(on, concurrency),
        first=_first(each.drafting for each in found),
        speed_without=_speed(off, concurrency) if off else None,
        first_without=_first(each.without for each in found if each.without) if off else None,
        gain=estimates.gain(pairs, [each.slice.content for each in found]) if pairs else None,
        decode_gain=_decode_gain(on, off) if off else None,
    )


def _first(some: Iterable[Taken]) -> float:
    """Seconds to the first token, of half of the replies."""
    return median(reply.first for taken in some for reply in taken.replies)


def _speed(slices: Sequence[Busy], concurrency: int) -> float:
    """Tokens a second while so many are under way: by Little's law."""
    total = _summed(slices)
    return concurrency * total.tokens / total.seconds


def _decode_gain(on: Sequence[Busy], off: Sequence[Busy]) -> float | None:
    """None where replies came whole on one side, so that nobody saw it decode."""
    speeds = (_decoding(on), _decoding(off))
    return speeds[0] / speeds[1] if all(speeds) else None


def _decoding(slices: Sequence[Busy]) -> float:
    """Tokens a second of one request after its first one; 0 where whole replies came at once."""
    total = _summed(slices)
    return total.later_tokens / total.later_seconds if total.later_seconds else 0.0
