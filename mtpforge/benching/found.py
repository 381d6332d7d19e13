"""What was found: by class of content and number of requests at a time, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from mtpforge.benching.depths import Advice, is_possible
from mtpforge.benching.estimates import Interval
from mtpforge.engines.counters import Cause
from mtpforge.families.curves import Curve
from mtpforge.report import Check, Report


@dataclass(frozen=True, slots=True)
class Cell:
    """One class of content ("" for all of them together) at one number of requests at a time.

    length: tokens a round, the target's own counted. positions: how often drafted token 1, 2, ... is accepted, of all
    rounds; () where the server does not say. speed: tokens a second of all requests together, while so many are under
    way; first: seconds to the first token. gain: speed by that without drafts, the same prompts paired. `_without`:
    of the baseline, None without one. decode_gain: of the tokens after each first one alone, None too
    where a server sent no reply in parts.
    """

    content: str
    concurrency: int
    n_prompts: int
    n_rounds: int
    length: Interval
    positions: tuple[float, ...]
    speed: float
    first: float
    speed_without: float | None = None
    first_without: float | None = None
    gain: Interval | None = None
    decode_gain: float | None = None

    @property
    def conditional(self) -> tuple[float, ...]:
        """How often each drafted token is accepted once the one before it was."""
        return tuple(own / first if first else 0.0 for first, own in pairwise((1.0, *self.positions)))

    def __str__(self) -> str:
        """For people, in one line."""
        gain = f"   {self.gain} x" if self.gain else ""
        name = self.content or "all content"
        return f"{name}, {self.concurrency} at a time   {self.length} tokens a round   {self.speed:,.1f} tokens/s{gain}"


@dataclass(frozen=True, slots=True)
class Bench:
    """All of it. k: draft steps of the server, 0 where it does not say. cells: by content; totals: all of it together.

    model, checkpoint: its name at the server, and what the server says lies behind it, "" where it does not say.

    curve: what a healthy draft of this release gives, None where none was published, or none on content and at a
    temperature that were measured. loses_from: the fewest requests at a time at which drafting is slower, None for
    nowhere. schedule: depths by batch size as `schedule_option` of the engine takes them, both "" where nothing was
    compared or the engine has no such option. causes: where drafts are rejected, what is known to do it, by likelihood.
    """

    url: str
    baseline: str | None
    engine: str
    model: str
    checkpoint: str
    dataset: str
    temperature: float
    generate: int
    k: int
    cells: tuple[Cell, ...]
    totals: tuple[Cell, ...]
    advice: tuple[Advice, ...]
    schedule: str
    schedule_option: str
    curve: Curve | None
    loses_from: int | None
    checks: tuple[Check, ...]
    causes: tuple[Cause, ...]

    @property
    def contents(self) -> tuple[str, ...]:
        """Classes of content, in their order."""
        return tuple(dict.fromkeys(cell.content for cell in self.cells))

    @property
    def report(self) -> Report:
        """The checks, and what they come to."""
        return Report("bench", self.checks, summary=self._summary())

    def _summary(self) -> str:
        some = [total for total in self.totals if is_possible(total)]
        gains = [(total.concurrency, total.gain) for total in some if total.gain is not None]
        pays = [str(n) for n, gain in gains if gain.is_above(1)]
        loses = [str(n) for n, gain in gains if gain.is_below(1)]
        told = (("pays", pays), ("loses", loses))
        parts = [f"{word} at {', '.join(times)}" for word, times in told if times]
        if parts:
            return f"drafting {' and '.join(parts)}".replace(" at ", " at a concurrency of ", 1)
        return "no gain is proven" if gains else ""

    def document(self) -> dict[str, object]:
        """What `--json` holds of it."""
        return {"bench": self, "report": self.report}

    def __str__(self) -> str:
        """The checks as a table."""
        return str(self.report)
