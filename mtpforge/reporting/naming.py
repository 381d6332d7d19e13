"""Names of drafts that are short and still tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

from mtpforge.errors import shown

_WIDTH: Final = 34  # characters of a name beside a line of a picture


def apart(names: Sequence[str]) -> list[str]:
    """Each by as few of its last parts as no other one ends in; what was named twice gets a number.

    `out/int4`, `out/fp8`, `old/int4` are `out/int4`, `fp8` and `old/int4`.
    """
    paths = [PurePath(name).parts or (name,) for name in names]
    others = set(paths)
    found: list[str] = []
    for own in paths:
        ends = (own[-n:] for n in range(1, len(own)) if sum(each[-n:] == own[-n:] for each in others) == 1)
        name = str(PurePath(*next(ends, own)))
        labels = (name if n == 1 else f"{name} ({n})" for n in range(1, len(names) + 1))
        found.append(next(label for label in labels if label not in found))
    return found


def short(name: str, width: int = _WIDTH) -> str:
    """The end of a name, which is what tells drafts and modules apart mostly; what does not print is escaped."""
    name = shown(name)
    return name if len(name) <= width else f"…{name[-width + 1 :]}"


def legends(names: Sequence[str]) -> list[str]:
    """Names for the lines of a picture, numbered where they are too long to differ in what is left of them."""
    left = [short(name) for name in names]
    if len(set(left)) == len(left):
        return left
    return [f"{n} {short(name, _WIDTH - 1 - len(str(n)))}" for n, name in enumerate(names, 1)]
