"""A document of JSON with the way to each of its values, so that a page can say where a number comes from.

Pointers are those of RFC 6901: `/fidelity/drafts/0/steps/0/total_variation`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mtpforge.units import count, file_size

_DIGITS = 4
NONE = "-"  # of what was not measured


@dataclass(frozen=True, slots=True)
class At:
    """A place in a document. value: None where the document has nothing there."""

    value: object
    pointer: str = ""

    def __getitem__(self, key: str | int) -> At:
        """The value of a key or the entry of a list; a place with nothing where there is none."""
        pointer = f"{self.pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"
        match self.value, key:
            case dict() as found, _:
                return At(found.get(str(key)), pointer)
            case list() as found, int() if key < len(found):
                return At(found[key], pointer)
        return At(None, pointer)

    def __iter__(self) -> Iterator[At]:
        """Entries of a list; none of anything else."""
        n = len(self.value) if isinstance(self.value, list) else 0
        return (self[number] for number in range(n))

    def items(self) -> Iterator[tuple[str, At]]:
        """Keys and values of an object; none of anything else."""
        keys = list(self.value) if isinstance(self.value, dict) else []
        return ((str(key), self[str(key)]) for key in keys)

    def __bool__(self) -> bool:
        """Whether something is there, and it is neither empty nor 0."""
        return bool(self.value)

    @property
    def text(self) -> str:
        """As words; "" for nothing."""
        return "" if self.value is None else str(self.value)

    @property
    def number(self) -> float:
        """As a number; NaN for what is none."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            return math.nan
        return float(self.value)


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a page. shown: for people. less: what was taken from it, where the two were subtracted."""

    at: At
    shown: str
    less: At | None = None


Shown = Number | str


def measured(at: At, digits: int = _DIGITS) -> Shown:
    """With so many digits after the point; a dash for what was not measured."""
    if math.isnan(at.number):
        return at.text or NONE
    return Number(at, f"{at.number:.{digits}f}")


def difference(at: At, less: At, digits: int = _DIGITS) -> Shown:
    """What is left when the other is taken from it."""
    apart = at.number - less.number
    return NONE if math.isnan(apart) else Number(at, f"{apart:.{digits}f}", less)


def counted(at: At) -> Shown:
    """A whole number."""
    return Number(at, count(at.value)) if isinstance(at.value, int) else at.text or NONE


def sized(at: At) -> Shown:
    """Bytes, decimal."""
    return NONE if math.isnan(at.number) else Number(at, file_size(at.number))


def scored(at: At) -> Shown:
    """A score of unknown size: counts as whole numbers, everything else with four digits."""
    if math.isnan(at.number):
        return at.text or NONE
    whole = math.isfinite(at.number) and at.number == int(at.number)
    return Number(at, f"{at.number:.0f}" if whole else f"{at.number:.4g}")
