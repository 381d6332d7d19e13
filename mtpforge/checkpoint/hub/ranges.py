"""Byte ranges: join what lies close together, take away what is already here, cut what is too long. Pure.

wanted   ##  ###          ####      ##
coalesce #######          ####      ##      a gap up to `gap_bytes` is cheaper to read than to ask twice
have         ##
subtract ####  #          ####      ##
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Bytes [start, stop) of one file; empty when both are equal."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"no range: {self.start}..{self.stop}")

    @property
    def n_bytes(self) -> int:
        """Length in bytes."""
        return self.stop - self.start


def coalesce(ranges: Iterable[Range], gap_bytes: int = 0) -> tuple[Range, ...]:
    """The ranges in ascending order, overlapping ones and those at most `gap_bytes` apart joined, empty ones left out.

    >>> coalesce([Range(8, 9), Range(0, 4), Range(5, 6)], gap_bytes=1)
    (Range(start=0, stop=6), Range(start=8, stop=9))
    """
    if gap_bytes < 0:
        raise ValueError(f"a gap of {gap_bytes} bytes")
    joined: list[Range] = []
    for part in sorted(r for r in ranges if r.n_bytes):
        if joined and part.start <= joined[-1].stop + gap_bytes:
            joined[-1] = Range(joined[-1].start, max(joined[-1].stop, part.stop))
        else:
            joined.append(part)
    return tuple(joined)


def subtract(wanted: Iterable[Range], have: Iterable[Range]) -> tuple[Range, ...]:
    """The bytes of `wanted` that are not in `have`, ascending and disjoint.

    >>> subtract([Range(0, 10)], [Range(2, 4), Range(8, 20)])
    (Range(start=0, stop=2), Range(start=4, stop=8))
    """
    left: list[Range] = []
    held = coalesce(have)
    first = 0  # ranges of `held` before this one end before every wanted range to come
    for part in coalesce(wanted):
        while first < len(held) and held[first].stop <= part.start:
            first += 1
        position = part.start
        at = first
        while at < len(held) and held[at].start < part.stop:
            if position < held[at].start:
                left.append(Range(position, held[at].start))
            position = max(position, held[at].stop)
            at += 1
        if position < part.stop:
            left.append(Range(position, part.stop))
    return tuple(left)


def split(ranges: Iterable[Range], max_bytes: int) -> tuple[Range, ...]:
    """The same bytes in the same order, no range longer than `max_bytes`.

    >>> split([Range(0, 5)], 2)
    (Range(start=0, stop=2), Range(start=2, stop=4), Range(start=4, stop=5))
    """
    if max_bytes < 1:
        raise ValueError(f"parts of {max_bytes} bytes")
    return tuple(
        Range(start, min(start + max_bytes, part.stop))
        for part in ranges
        for start in range(part.start, part.stop, max_bytes)
    )
