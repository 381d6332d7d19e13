"""Whether a build runs compiled row kernels, and how a band of a move goes through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mtpforge.building.reading import Band
from mtpforge.checkpoint.hub import cache
from mtpforge.formats import FORMATS
from mtpforge.formats.format import WORTH_COMPILING
from mtpforge.methods import METHODS
from mtpforge.planning.steps import Move, Step


def is_worthwhile(steps: tuple[Step, ...]) -> bool:
    """Whether a plan encodes so many weights that compiled kernels save time."""
    return encoded_weights(steps) >= WORTH_COMPILING


def encoded_weights(steps: tuple[Step, ...]) -> int:
    """Weights that a plan decodes and encodes."""
    return sum(m.shape[0] * m.shape[1] for s in steps for m in s.moves if m.action == "encode")


class Kernels:
    """The compiled path of one thread. None means: not this band, take the plain path, which also explains errors."""

    def __init__(self) -> None:
        from mtpforge.formats import compiled

        self._packed = compiled.packed
        self._rows = compiled.RowKernels(cache.home() / "kernels")

    def encode(self, move: Move, band: Band, matrix: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The row parts of a band in the wanted format; valid until the next call."""
        make = FORMATS[move.wanted.format].row_packing
        packing = make(move.shape[1], move.wanted, matrix) if make else None
        kernel = METHODS[move.scales].kernel(packing.kernel) if packing else None
        packing = replace(packing, kernel=kernel) if packing and kernel else None
        packed = self._packed(band.parts, band.shape, move.stored) if packing else None
        return self._rows.encode(packed, band.shape, packing) if packed and packing else None

    def decode(self, move: Move, band: Band) -> Tensor | None:
        """Float32 [rows, in]; valid until the next call."""
        packed = self._packed(band.parts, band.shape, move.stored)
        return self._rows.decode(packed, band.shape) if packed else None

    def largest(self, move: Move, band: Band) -> Tensor | None:
        """Largest magnitude, float32 scalar."""
        packed = self._packed(band.parts, band.shape, move.stored)
        return self._rows.largest(packed, band.shape) if packed else None
