"""What a running server says of its drafting: names of an engine's metrics, by which a bench reads any engine.

Counters are summed over their labels: data-parallel ranks count each for itself. Nothing here asks a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

MOST_STEPS: Final = 256  # draft steps: far beyond what anybody serves, and short of what a table could hold
_MOST_TOKENS: Final = 1 << 31


def steps_in(value: object) -> int:
    """Draft steps as JSON tells them; 0 for what cannot be that."""
    return int(value) if is_count(value) and isinstance(value, int) and value <= MOST_STEPS else 0


def is_count(value: object) -> bool:
    """Whether JSON holds a number of things here."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS


@dataclass(frozen=True, slots=True)
class Cause:
    """Why drafts are rejected although nothing fails, and a command that tells whether this is it."""

    what: str
    check: str


@dataclass(frozen=True, slots=True)
class Counters:
    """Names of Prometheus samples, as they stand on the page that `/metrics` answers with.

    prefix: that the names of the engine's metrics begin with; no other engine's do.
    rounds: counts verifications, of one request each. generated, finished: tokens that were made, requests that ended.
    accepted, drafted: count drafted tokens; "" where the engine does not: accepted ones are then what was generated,
        less one token a request (of the prompt's own step) and one a round (the target's own).
    by_position: counts accepted tokens by the label `position`, from 0; "" for none.
    enable: what the server is started with to have them.
    drafts_by: the option by which a server drafts, and which sets `schedule`.
    info: path that tells how it was started. made_up(answer): what of it makes acceptance up, "" for nothing, None
        where it does not say. unseen: what makes acceptance up where nothing says so.
    steps: a gauge of draft steps, "" for none. depth(answer): the same of `info`'s answer, 0 where it does not say.
    body: keys of a request that make the server add how it was drafted. histogram(event): of an event of a streamed
        reply how many rounds accepted 0, 1, 2, ... tokens; () where it does not say, ValueError for anything else.
    schedule(rows): rows of first and last batch size and depth, as the option that sets them; None where there is none.
    near_zero, falling: what is known to spoil a draft in this engine, the likeliest first; near_zero begins with
        weights that were not read, which spoil it under any load.
    under_load: what spoils it beside other requests alone.
    """

    prefix: str
    rounds: str
    generated: str
    finished: str
    enable: str
    drafts_by: str
    info: str
    made_up: Callable[[Mapping[str, object]], str | None]
    unseen: str
    accepted: str = ""
    drafted: str = ""
    by_position: str = ""
    steps: str = ""
    depth: Callable[[Mapping[str, object]], int] = lambda _: 0
    body: Mapping[str, object] = field(default_factory=dict)
    histogram: Callable[[Mapping[str, object]], tuple[int, ...]] = lambda _: ()
    schedule: Callable[[Sequence[tuple[int, int, int]]], str] | None = None
    near_zero: tuple[Cause, ...] = ()
    falling: tuple[Cause, ...] = ()
    under_load: tuple[Cause, ...] = ()
