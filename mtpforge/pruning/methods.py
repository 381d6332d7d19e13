"""Scores of experts, one small pure function a method, and what each of them has to read.

    needs       score is made from                                        what is read of the source
    list        nothing: the experts are named                            nothing
    router      the router's rows and correction bias                     these two tensors
    experts     every weight of every expert                              the whole layer's experts
    inputs      the layer run on calibration inputs: mtpforge.nextn       the whole layer, and rows of the embedding

What is added: a row in METHODS, and for `router` or `experts` a function here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Router:
    """What decides which expert a token is sent to.

    bias: e_score_correction_bias, one number per expert. rows: reads the weight, float32 [n_experts, hidden].
    """

    bias: tuple[float, ...]
    rows: Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to choose. drops: which end of the scores goes first. origin: paper or place that the method is from.

    of_router: one score per expert. of_expert: the score of one expert from its weights, float32 in bands of rows.
    A method that needs inputs has neither: its scores are given, one per expert.
    """

    name: str
    needs: Literal["list", "router", "experts", "inputs"]
    drops: Literal["highest", "lowest", ""]
    what: str
    origin: str
    of_router: Callable[[Router], list[float]] | None = None
    of_expert: Callable[[Iterable[Tensor]], float] | None = None


def bias(router: Router) -> list[float]:
    """e_score_correction_bias itself: a high one lifts an expert that the router alone would hardly choose."""
    return list(router.bias)


def router_norm(router: Router) -> list[float]:
    """Euclidean norm of each row of the router, in float64."""
    norms: list[float] = router.rows().double().norm(dim=1).tolist()
    return norms


def aimer(bands: Iterable[Tensor]) -> float:
    """mean(|w|) / sqrt(mean(w^2)) over all weights of an expert: 1 where all have one magnitude, less with outliers.

    Sums in float64. An expert whose weights are all zero scores infinity: it goes first.
    """
    absolute = squares = 0.0
    count = 0
    for band in bands:
        values = band.double()
        absolute += float(values.abs().sum())
        squares += float(values.square().sum())
        count += values.numel()
    return absolute / count / math.sqrt(squares / count) if squares else math.inf
