"""From scores to the experts that stay, and how far two choices agree. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from mtpforge.errors import MtpforgeError
from mtpforge.families.routing import Routing


def keep(
    scores: Sequence[float], n_kept: int, routing: Routing, drops: Literal["highest", "lowest"]
) -> tuple[int, ...]:
    """The numbers of the experts that stay, ascending: as many of every group, the worst of each dropped.

    Of equal scores the higher number goes first. MtpforgeError where so many cannot serve the routing, or a score is
    no number.
    """
    routing.refuse_count(n_kept)
    odd = [number for number, score in enumerate(scores) if math.isnan(score)]
    if odd:
        raise MtpforgeError(f"expert {odd[0]} has no score", why="the numbers that it is made from are not all finite")
    size, stays = len(scores) // routing.n_group, n_kept // routing.n_group
    sign = 1.0 if drops == "highest" else -1.0
    kept: list[int] = []
    for group in range(routing.n_group):
        members = range(group * size, (group + 1) * size)
        kept += sorted(members, key=lambda number: (sign * scores[number], number))[:stays]
    return tuple(sorted(kept))


def agreement(choices: Mapping[str, Sequence[int]], n_stored: int) -> dict[str, dict[str, int]]:
    """Method -> method -> how many of the experts that the first drops the second drops too."""
    dropped = {name: frozenset(range(n_stored)) - frozenset(kept) for name, kept in choices.items()}
    return {one: {other: len(dropped[one] & dropped[other]) for other in dropped} for one in dropped}
