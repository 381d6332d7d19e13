"""What healthy drafts of a release accept, as others measured it: a yardstick, from `curves.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

_TABLE: Final = "curves.toml"


@dataclass(frozen=True, slots=True)
class Curve:
    """Tokens a round, the target's own counted, for k = 1, 2, 3, ...; alarm_share: of it that is worth a message.

    content, temperature: classes of prompts, as datasets name them, and the sampling that it holds for.
    """

    name: str
    length: tuple[float, ...]
    alarm_share: float
    conditions: str
    source: str
    content: tuple[str, ...]
    temperature: float

    def is_like(self, content: str, temperature: float) -> bool:
        """Whether what is measured so can be compared with it."""
        return content in self.content and temperature == self.temperature

    def at(self, k: int) -> float | None:
        """The length at k; None beyond what was measured."""
        return self.length[k - 1] if 1 <= k <= len(self.length) else None


def curve_of(names: Iterable[str]) -> Curve | None:
    """The curve of the release that one of these names of a served model holds, None where none does."""
    told = [name.lower() for name in names]
    for words, curve in _curves():
        if any(re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![0-9])", name) for word in words for name in told):
            return curve
    return None


@cache
def _curves() -> tuple[tuple[tuple[str, ...], Curve], ...]:
    """Words and curves, in the order of the file."""
    rows = tomllib.loads((files(__name__) / _TABLE).read_text(encoding="utf-8"))["curves"]
    return tuple((tuple(row["models"]), _curve(row)) for row in rows)


def _curve(row: dict[str, object]) -> Curve:
    length, alarm, content, temperature = row["length"], row["alarm"], row["content"], row["temperature"]
    assert isinstance(length, list)  # noqa: S101 -- our own file
    assert isinstance(alarm, dict)  # noqa: S101 -- the same
    assert isinstance(content, list)  # noqa: S101 -- the same
    assert isinstance(temperature, float)  # noqa: S101 -- the same
    share = alarm["length"] / length[alarm["k"] - 1]
    words = (str(row["conditions"]), str(row["source"]))
    return Curve(str(row["name"]), tuple(length), share, *words, tuple(content), temperature)
