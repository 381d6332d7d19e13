"""A cell of the table from its slices: acceptance by the counters, speed by the replies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from mtpforge.benching import counting, estimates
from mtpforge.benching.estimates import Pair
from mtpforge.benching.found import Cell
from mtpforge.benching.measuring import Measured, pooled
from mtpforge.benching.streaming import Reply


def cell(content: str, concurrency: int, found: Sequence[Measured]) -> Cell:
    """Of one class, or of several together."""
    units = pooled(found)
    total = counting.summed(units)
    replies = [reply for each in found for reply in each.drafting.replies]
    others = [reply for each in found for reply in (each.without.replies if each.without else ())]
    # Prompts of one slice run together: what slows one slows all. So a slice is the unit, as it is for the counters.
    pairs = [Pair(*_sums(each.drafting.replies), *_sums(each.without.replies)) for each in found if each.without]
    return Cell(
        content=content,
        concurrency=concurrency,
        n_prompts=len(replies),
        n_rounds=round(total.rounds),
        length=estimates.length([unit.accepted for unit in units], [unit.rounds for unit in units]),
        positions=tuple(n / total.rounds for n in total.positions) if total.rounds else (),
        speed=_speed(replies, concurrency),
        first=median(reply.first for reply in replies),
        speed_without=_speed(others, concurrency) if others else None,
        first_without=median(reply.first for reply in others) if others else None,
        gain=estimates.gain(pairs) if pairs else None,
        decode_gain=_decoding(replies) / _decoding(others) if others else None,
    )


def _sums(replies: Sequence[Reply]) -> tuple[float, float]:
    """Tokens and seconds of replies together."""
    return sum(each.tokens for each in replies), sum(each.seconds for each in replies)


def _speed(replies: Sequence[Reply], concurrency: int) -> float:
    """Tokens a second while so many are under way: by Little's law, so that the end of a slice does not count."""
    return concurrency * sum(each.tokens for each in replies) / sum(each.seconds for each in replies)


def _decoding(replies: Iterable[Reply]) -> float:
    """Tokens a second of one request after its first one."""
    some = [each for each in replies if each.tokens > 1 and each.seconds > each.first]
    seconds = sum(each.seconds - each.first for each in some)
    return sum(each.tokens - 1 for each in some) / seconds if seconds else 1.0
