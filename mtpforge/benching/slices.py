"""A slice: prompts that are sent to one server between two looks at its counters, and who sends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from mtpforge.benching.server import Server
    from mtpforge.benching.streaming import Load, Reply


@dataclass(frozen=True, slots=True)
class Slice:
    """Prompts `first` up to `last` of the `of` of a class, so many at a time; number: of the slice in its cell."""

    content: str
    concurrency: int
    number: int
    first: int
    last: int
    of: int
    is_warming: bool = False


Send: TypeAlias = "Callable[[Server, Load, Slice, Callable[[], None]], list[Reply]]"


@dataclass(frozen=True, slots=True)
class Source:
    """Classes of content, and what sends a slice of one. known: all that could be asked for, contents among them."""

    contents: tuple[str, ...]
    send: Send
    known: tuple[str, ...] = ()


def fewest(concurrency: int) -> int:
    """Prompts of a slice, at least: twice the requests at a time, so that most of it runs among so many."""
    return 2 * concurrency if concurrency > 1 else 1


def cut(content: str, concurrency: int, n: int, slices: int) -> tuple[Slice, ...]:
    """A cell's prompts in slices of equal size, give or take one, none with fewer prompts than `fewest`."""
    n_slices = max(1, min(slices, n // fewest(concurrency)))
    edges = [n * at // n_slices for at in range(n_slices + 1)]
    return tuple(Slice(content, concurrency, at, first, last, n) for at, (first, last) in enumerate(pairwise(edges)))
