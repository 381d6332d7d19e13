"""Whether compiled kernels are worth their start, and where they are kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from mtpforge.checkpoint.hub import cache

if TYPE_CHECKING:
    from mtpforge.weights.kernels import RowKernels

# Weights from which compiled kernels save time: importing numba takes as long as the plain functions for fewer.
WORTH_COMPILING: Final = 64 << 20


def kernels_for(n_weights: int, *, wanted: bool | None = None) -> Callable[[], RowKernels | None]:
    """What gives every thread its own kernels; None where they would save no time on so many weights.

    wanted: whether there are to be some, None where the number of weights decides.
    """
    if not (n_weights >= WORTH_COMPILING if wanted is None else wanted):
        return lambda: None
    from mtpforge.weights.kernels import RowKernels

    held = threading.local()

    def own() -> RowKernels:
        if not hasattr(held, "kernels"):
            held.kernels = RowKernels(cache.home() / "kernels")
        return cast("RowKernels", held.kernels)

    return own
