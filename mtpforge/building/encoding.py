"""A band into the wanted format: by the torch functions of the format, on any device, or by compiled kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from mtpforge.formats import FORMATS
from mtpforge.methods import METHODS
from mtpforge.planning.steps import Move, Step
from mtpforge.weights import Band

if TYPE_CHECKING:
    from mtpforge.weights.kernels import RowKernels


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


def compiled(kernels: RowKernels, move: Move, band: Band, matrix: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The same parts of a band by kernels, valid until the next call; None where they do not take it."""
    make = FORMATS[move.wanted.format].row_packing
    packing = make(move.shape[1], move.wanted, matrix) if make else None
    kernel = METHODS[move.scales].kernel(packing.kernel) if packing else None
    return kernels.encode(band, replace(packing, kernel=kernel)) if packing and kernel else None


def encoded_weights(steps: tuple[Step, ...]) -> int:
    """Weights that a plan decodes and encodes."""
    return sum(m.shape[0] * m.shape[1] for s in steps for m in s.moves if m.action == "encode")
