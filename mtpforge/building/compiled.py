"""Bands through compiled row kernels, where both formats have one; in buffers that are used again and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mtpforge.building.reading import Band
from mtpforge.checkpoint import cache
from mtpforge.formats import FORMATS
from mtpforge.formats.format import PackedRows, RowPacking
from mtpforge.planning.steps import Move, Step

# Importing numba and loading kernels takes as long as torch does for this many weights.
WORTHWHILE: Final = 64 << 20
_WIDTH: Final = 32  # the kernels' inner loops
# Larger ones, as float32 bits, are Inf as BF16, or NaN, or Inf: the plain path says where.
_LARGEST_BITS: Final = 0x7F7F7FFF
# Below, scales are subnormal, and a quotient may be Inf or NaN.
_LEAST_BITS: Final = 0x0D800000  # 2^-100
_PADDING: Final = 80  # rows of scratch at a multiple of 4096 bytes would evict each other from the first cache


def is_worthwhile(steps: tuple[Step, ...]) -> bool:
    """Whether a plan encodes so many weights that compiled kernels save time."""
    return sum(m.shape[0] * m.shape[1] for s in steps for m in s.moves if m.action == "encode") >= WORTHWHILE


class Kernels:
    """The compiled path of one thread. None means: not this band, take the plain path, which also explains errors."""

    def __init__(self) -> None:
        from mtpforge.arithmetic import rows

        self._rows = rows
        rows.keep_compiled_in(cache.home() / "kernels")
        self._work = np.empty((3, 0), np.float32)
        self._out = np.empty(0, np.uint8)

    def encode(self, move: Move, band: Band, matrix: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The row parts of a band in the wanted format; valid until the next call."""
        packed = _packed(move, band)
        make = FORMATS[move.wanted.format].row_packing
        packing = make(move.shape[1], move.wanted, matrix) if make and packed else None
        if packed is None or packing is None:
            return None
        return self._encode(packed, packing, band)

    def decode(self, move: Move, band: Band) -> Tensor | None:
        """Float32 [rows, in]."""
        packed = _packed(move, band)
        if packed is None:
            return None
        as_f32 = RowPacking("f32", (), band.shape[1], (4 * band.shape[1], 0, 0), lambda codes, _s, _z: {"": codes})
        rows = self._encode(packed, as_f32, band)
        return None if rows is None else rows[""].view(torch.float32)

    def largest(self, move: Move, band: Band) -> Tensor | None:
        """Largest magnitude, float32 scalar."""
        packed = _packed(move, band)
        if packed is None:
            return None
        bits = self._rows.largest(packed.kernel, _arrays(packed, band), self._scratch(band.shape[1]))
        return torch.tensor(bits, dtype=torch.int32).view(torch.float32) if bits <= _LARGEST_BITS else None

    def _encode(self, packed: PackedRows, packing: RowPacking, band: Band) -> dict[str, Tensor] | None:
        if packing.kernel.startswith("e2m1") and not _is_normal(packing.numbers[0]):
            return None
        numbers = np.zeros(4, np.float32)
        numbers[: len(packing.numbers)] = packing.numbers
        out = self._outputs(band.shape[0], packing.widths)
        bits = self._rows.encode_rows(
            packed.kernel,
            packing.kernel,
            _arrays(packed, band),
            numbers,
            packing.size,
            out,
            self._scratch(band.shape[1]),
        )
        codes, scales, zeros = (torch.from_numpy(array) for array in out)
        return packing.parts(codes, scales, zeros) if bits <= _LARGEST_BITS else None

    def _outputs(self, n_rows: int, widths: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Three arrays [rows, width] in the one buffer, each aligned for any dtype."""
        starts = np.cumsum([0, *(-(-n_rows * width // 64) * 64 for width in widths)])
        if len(self._out) < starts[-1]:
            self._out = np.empty(starts[-1], np.uint8)
        first, second, third = (
            self._out[start : start + n_rows * width].reshape(n_rows, width)
            for start, width in zip(starts, widths, strict=False)
        )
        return first, second, third

    def _scratch(self, columns: int) -> np.ndarray:
        if self._work.shape[1] < columns + _PADDING:
            self._work = np.empty((3, columns + _PADDING), np.float32)
        return self._work


def _packed(move: Move, band: Band) -> PackedRows | None:
    packed_rows = FORMATS[move.stored.format].packed_rows
    return None if packed_rows is None or band.shape[1] % _WIDTH else packed_rows(band.parts, band.shape, move.stored)


def _arrays(packed: PackedRows, band: Band) -> tuple[np.ndarray, np.ndarray, int, int]:
    codes, factors = packed.codes.contiguous().numpy(), packed.factors.contiguous().numpy()
    return codes, factors, packed.rows_per_factor, band.shape[1]


def _is_normal(scale: float) -> bool:
    """Whether a global scale is far from the ends of float32, so that no factor is subnormal."""
    bits = int(np.float32(scale).view(np.int32))
    return _LEAST_BITS <= bits <= int(np.float32(2.0**100).view(np.int32))
