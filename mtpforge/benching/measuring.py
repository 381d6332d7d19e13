"""The order of the load: warmed up, then slices of prompts, on, off, off, on, and so on.

A slice goes to both servers before the next one is begun, to each of them first in turn: what drifts with time (clocks,
heat, other users) falls on both. Counters are read around every slice; slices have different prompts, so that they are
independent units, as far as a class has so many. Nothing runs on both servers at once: they may share a machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mtpforge.benching import counting, slices
from mtpforge.benching import server as servers
from mtpforge.benching.asked import SLICES, Asked
from mtpforge.benching.counting import Counts, Page
from mtpforge.benching.server import Server
from mtpforge.benching.slices import Slice, Source
from mtpforge.benching.streaming import Load, Reply
from mtpforge.engines.counters import Counters
from mtpforge.report import OnProgress, Progress

_LOOKS: Final = 10  # at counters, which may lag behind the last token
_COUNTED: Final = 0.95  # of the tokens that were given, at least: the last ones may be counted after their reply
_PAUSE: Final = 0.2  # seconds between two of them


@dataclass(frozen=True, slots=True)
class Side:
    """One server, and how it is asked."""

    server: Server
    load: Load

    @property
    def counters(self) -> Counters:
        """Of its engine."""
        return self.load.counters

    def page(self) -> Page:
        """Its metrics now."""
        return counting.page(servers.metrics(self.server), self.counters, self.server.root)


@dataclass(frozen=True, slots=True)
class Taken:
    """What a server gave for a slice."""

    replies: tuple[Reply, ...]
    counts: Counts

    @property
    def tokens(self) -> int:
        """Of all replies."""
        return sum(reply.tokens for reply in self.replies)

    @property
    def units(self) -> tuple[Counts, ...]:
        """Independent stretches: single replies where each says how it was drafted, else the slice."""
        if self.replies and all(reply.histogram for reply in self.replies):
            return tuple(counting.of_histograms([each.histogram], each.tokens) for each in self.replies)
        return (self.counts,)


@dataclass(frozen=True, slots=True)
class Measured:
    """A slice on the server that drafts, and on the one that does not."""

    slice: Slice
    drafting: Taken
    without: Taken | None


@dataclass(slots=True)
class Run:
    """All slices, in their order."""

    asked: Asked
    source: Source
    drafting: Side
    without: Side | None
    on_progress: OnProgress
    done: int = 0

    @property
    def sides(self) -> tuple[Side, ...]:
        """Those that load is sent to."""
        return (self.drafting,) if self.without is None else (self.drafting, self.without)

    @property
    def n_requests(self) -> int:
        """In all, warming up not counted."""
        each = sum(self.asked.prompts_at(n) for n in self.asked.concurrency)
        return each * len(self.source.contents) * len(self.sides)

    def warm(self, concurrency: int) -> tuple[Counts, ...]:
        """Send as many as there will be at a time, and forget the replies; what each side counted."""
        content = self.source.contents[0]
        some = Slice(content, concurrency, 0, 0, concurrency, self.asked.prompts_at(concurrency), is_warming=True)
        return tuple(self._taken(side, some).counts for side in self.sides)

    def cell(self, content: str, concurrency: int) -> Iterator[Measured]:
        """Its slices, in turn on both sides."""
        n = self.asked.prompts_at(concurrency)
        for some in slices.cut(content, concurrency, n, SLICES):
            order = self.sides if some.number % 2 == 0 else self.sides[::-1]
            taken = {id(side): self._taken(side, some) for side in order}
            without = None if self.without is None else taken[id(self.without)]
            yield Measured(some, taken[id(self.drafting)], without)

    def _taken(self, side: Side, some: Slice) -> Taken:
        before = side.page()
        replies = self.source.send(side.server, side.load, some, (lambda: None) if some.is_warming else self._one_more)
        return Taken(tuple(replies), self._settled(side, before, sum(reply.tokens for reply in replies)))

    def _settled(self, side: Side, before: Page, tokens: int) -> Counts:
        """What was counted, once all that was made has been."""
        counts = Counts()
        for look in range(_LOOKS):
            if look:
                time.sleep(_PAUSE)
            counts = counting.between(before, side.page(), side.counters, side.server.root)
            if counts.generated >= tokens and counts.is_possible:
                return counts
        if counts.generated < _COUNTED * tokens:
            raise side.server.refusal(
                "counts fewer tokens than it gave",
                "name one engine itself: of several behind one address each counts its own, and so does each process",
                why=f"`{side.counters.generated}` rose by {counts.generated:,.0f}, replies held {tokens:,}",
            )
        if not counts.is_possible:
            raise side.server.refusal(
                "has counters that contradict each other",
                f"`curl {side.server.root}/metrics`",
                why=f"{counts.rounds:,.0f} rounds, {counts.accepted:,.0f} of {counts.drafted:,.0f} drafted tokens"
                f" accepted, by position {', '.join(f'{n:,.0f}' for n in counts.positions) or 'none'}",
            )
        return counts

    def _one_more(self) -> None:
        self.done += 1
        self.on_progress(Progress("load", self.done, self.n_requests, "items"))


def pooled(found: Sequence[Measured]) -> list[Counts]:
    """The independent units of the server that drafts."""
    return [unit for each in found for unit in each.drafting.units]
