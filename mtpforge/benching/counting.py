"""What a server counted between two looks at its metrics page.

The page is read by prometheus_client's own parser. Counters of all labels are summed: each rank counts for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Final

from mtpforge import errors
from mtpforge.engines import ENGINES
from mtpforge.engines.counters import MOST_STEPS, steps_in
from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from mtpforge.engines import Engine
    from mtpforge.engines.counters import Counters

_STARTED: Final = "process_start_time_seconds"
_CREATED: Final = "_created"  # a counter's first moment, as prometheus_client writes it


@dataclass(frozen=True, slots=True)
class Page:
    """Samples by name, summed over labels; positions: accepted tokens by position; births: when counters began.

    steps: draft steps by a gauge, 0 where there is none; each rank tells its own, so it is no sum.
    """

    samples: Mapping[str, float]
    positions: tuple[float, ...]
    births: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
    steps: int = 0

    def value(self, name: str) -> float:
        """A sample; 0 where it is not there."""
        return self.samples.get(name, 0.0)


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one stretch of load. rounds: verifications; accepted: drafted tokens; positions: accepted ones by position."""

    rounds: float = 0.0
    accepted: float = 0.0
    drafted: float = 0.0
    positions: tuple[float, ...] = ()
    generated: float = 0.0

    @property
    def length(self) -> float:
        """Tokens a round, the target's own counted."""
        return 1 + self.accepted / self.rounds if self.rounds else 1.0

    @property
    def is_possible(self) -> bool:
        """Whether counters agree with each other; a page may have been written between two of them."""
        falling = (self.rounds, *self.positions)
        return all(late <= early for early, late in pairwise(falling)) and self.accepted <= (self.drafted or math.inf)


def engine_of_page(text: str, root: str) -> Engine:
    """Whose metrics these are."""
    for engine in ENGINES.values():
        if engine.counters and f"\n{engine.counters.prefix}" in f"\n{text}":
            return engine
    known = ", ".join(engine.name for engine in ENGINES.values() if engine.counters)
    raise MtpforgeError(
        f"the metrics of {root} are of no engine that is known here",
        why=f"known: {known}",
        fix=f"a gateway has metrics of its own: name the engine's address; `curl {root}/metrics`",
        code=errors.REMOTE,
    )


def page(text: str, counters: Counters, root: str) -> Page:
    """A metrics page as numbers. MtpforgeError where it is none."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, float] = {}
    births: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    by_position: dict[int, float] = {}
    named = (*_rising(counters), counters.by_position)
    steps = 0
    try:
        for family in text_string_to_metric_families(text):
            for name, labels, value, *_ in family.samples:
                samples[name] = samples.get(name, 0.0) + value
                if name == _STARTED or name.endswith(_CREATED):
                    births[name, tuple(sorted(labels.items()))] = value
                if name == counters.steps:
                    steps = max(steps, steps_in(int(value)))
                if name == counters.by_position:
                    at = int(labels["position"])
                    by_position[at] = by_position.get(at, 0.0) + value
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise MtpforgeError(
            f"the metrics of {root} cannot be read", why=shown(error), fix=f"`curl {root}/metrics`", code=errors.REMOTE
        ) from error
    if odd := next((name for name in named if not math.isfinite(samples.get(name, 0.0))), ""):
        raise MtpforgeError(
            f"the metrics of {root} count no rounds or tokens",
            why=f"`{odd}` is {samples[odd]}",
            fix=f"its log may say why; `curl {root}/metrics`",
            code=errors.REMOTE,
        )
    positions = tuple(by_position[at] for at in sorted(by_position))
    if sorted(by_position) != list(range(len(positions))) or len(positions) > MOST_STEPS:
        raise MtpforgeError(
            f"the metrics of {root} count positions that are none",
            why=f"`{counters.by_position}` has {shown(', '.join(map(str, sorted(by_position))))}",
            fix=f"`curl {root}/metrics`",
            code=errors.REMOTE,
        )
    return Page(samples, positions, births, steps)


def _rising(counters: Counters) -> tuple[str, ...]:
    """Counters of the engine without labels that matter; those that it has."""
    names = (counters.rounds, counters.accepted, counters.drafted, counters.generated, counters.finished)
    return tuple(name for name in names if name)


def between(before: Page, after: Page, counters: Counters, root: str) -> Counts:
    """What was counted. MtpforgeError where the server was started anew in between."""
    fallen = next((name for name in _rising(counters) if after.value(name) < before.value(name)), "")
    if any(late < early for late, early in zip_longest(after.positions, before.positions, fillvalue=0.0)):
        fallen = fallen or counters.by_position
    reborn = any(after.births.get(key, moment) != moment for key, moment in before.births.items())
    if fallen or reborn:
        raise MtpforgeError(
            f"{root} was started anew while it was measured",
            why=f"`{fallen}` fell" if fallen else "its counters began at another moment",
            fix="measure again once it stays up; its log says why it ended",
            code=errors.REMOTE,
        )

    def grew(name: str) -> float:
        return after.value(name) - before.value(name) if name else 0.0

    rounds, generated = grew(counters.rounds), grew(counters.generated)
    accepted = grew(counters.accepted) if counters.accepted else max(0.0, generated - grew(counters.finished) - rounds)
    positions = tuple(late - early for late, early in zip_longest(after.positions, before.positions, fillvalue=0.0))
    return Counts(rounds, accepted if rounds else 0.0, grew(counters.drafted), positions, generated)


def of_histograms(found: Iterable[tuple[int, ...]], generated: float) -> Counts:
    """Of replies that say in how many rounds they accepted 0, 1, 2, ... tokens each."""
    rounds: list[int] = []
    for each in found:
        rounds += [0] * (len(each) - len(rounds))
        for n, times in enumerate(each):
            rounds[n] += times
    positions = tuple(float(sum(rounds[at:])) for at in range(1, len(rounds)))
    return Counts(float(sum(rounds)), sum(positions), 0.0, positions, generated)


def summed(found: Iterable[Counts]) -> Counts:
    """Several stretches as one."""
    all_of_them = list(found)
    most = max((len(each.positions) for each in all_of_them), default=0)
    positions = tuple(sum(each.positions[at] for each in all_of_them if at < len(each.positions)) for at in range(most))
    return Counts(
        sum(each.rounds for each in all_of_them),
        sum(each.accepted for each in all_of_them),
        sum(each.drafted for each in all_of_them),
        positions,
        sum(each.generated for each in all_of_them),
    )
