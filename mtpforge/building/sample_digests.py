"""What the build made of the bands that the reference check drew: sha256 of their decoded values as BF16."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from torch import Tensor

from mtpforge.checking import bf16_bytes
from mtpforge.planning.steps import Move
from mtpforge.weights import Band


class Samples:
    """Filled by the threads of a build, each band by one of them."""

    def __init__(self, drawn: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """`drawn`: module -> bands (first row, row after the last)."""
        self._drawn = drawn
        self.digests: dict[tuple[str, int, int], str] = {}

    def wants(self, move: Move, band: Band) -> bool:
        """Whether the band was drawn."""
        return (band.first, band.last) in self._drawn.get(move.module, ())

    def observe(self, move: Move, band: Band, values: Tensor) -> None:
        """Note the digest of decoded values, float32 [rows, in], if the band was drawn."""
        if self.wants(move, band):
            self.digests[move.module, band.first, band.last] = hashlib.sha256(bf16_bytes(values)).hexdigest()

    def missing(self, move: Move) -> list[tuple[int, int]]:
        """Drawn bands of the weight that were not seen yet."""
        return [band for band in self._drawn.get(move.module, ()) if (move.module, *band) not in self.digests]
