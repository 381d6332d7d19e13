"""A band through the torch functions of its two formats, on whatever device its tensors are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mtpforge.building.reading import Band
from mtpforge.formats import FORMATS
from mtpforge.methods import METHODS
from mtpforge.planning.steps import Move


def decoded(move: Move, band: Band) -> Tensor:
    """Float32 [rows, in]."""
    return FORMATS[move.stored.format].decode(band.parts, band.shape, move.stored)


def encoded(
    move: Move, values: Tensor, matrix: Mapping[str, Tensor], factor: Tensor | None = None
) -> dict[str, Tensor]:
    """The row parts of float32 [rows, in] in the wanted format, under the matrix parts, the scales as the plan says.

    factor: of the inputs of the weight, where the method needs them and there are some.
    """
    wanted = FORMATS[move.wanted.format]
    if wanted.search is not None:
        return wanted.search(values, move.wanted, matrix, METHODS[move.scales].finder(factor))
    if wanted.encode is None:
        raise AssertionError(f"{move.module}: {wanted.name} is only read")
    return wanted.encode(values, move.wanted, matrix)
