"""Compiled row kernels on bands of stored weights, where their formats have some; in buffers used again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtpforge.arithmetic import rows
from mtpforge.formats import FORMATS
from mtpforge.formats.format import PackedRows, RowPacking
from mtpforge.tensors import Shape
from mtpforge.weights.stored import Band

Array = npt.NDArray[np.uint8]

_WIDTH: Final = 32  # columns of the kernels' inner loops
_LARGEST_BITS: Final = 0x7F7F7FFF  # of float32; what is larger may be Inf as BF16, or is Inf or NaN
_PADDING: Final = 80  # rows of scratch at a multiple of 4096 bytes would evict each other from the first cache


class RowKernels:
    """Runs kernels for one thread. None means: not this band; the plain functions take it, and explain what is wrong.

    What is returned is valid until the next call.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` keeps the kernels once they are compiled."""
        rows.keep_compiled_in(folder)
        self._work = np.empty((3, 0), np.float32)
        self._out = np.empty(0, np.uint8)

    def encode(self, band: Band, packing: RowPacking) -> dict[str, Tensor] | None:
        """The row parts of the band in another format."""
        packed = _packed(band)
        if packed is None:
            return None
        numbers = np.zeros(4, np.float32)
        numbers[: len(packing.numbers)] = packing.numbers
        out = self._outputs(band.shape[0], packing.widths)
        arrays, work = _arrays(packed, band.shape), self._scratch(band.shape)
        bits = rows.encode_rows(packed.kernel, packing.kernel, arrays, numbers, packing.size, out, work)
        codes, scales, zeros = (torch.from_numpy(array) for array in out)
        return packing.parts(codes, scales, zeros) if bits <= _LARGEST_BITS else None

    def decode(self, band: Band) -> Tensor | None:
        """Float32 [rows, in]."""
        columns = band.shape[1]
        as_f32 = RowPacking("f32", (), columns, (4 * columns, 0, 0), lambda codes, _s, _z: {"": codes})
        made = self.encode(band, as_f32)
        return None if made is None else made[""].view(torch.float32)

    def largest(self, band: Band) -> Tensor | None:
        """Largest magnitude, float32 scalar."""
        packed = _packed(band)
        if packed is None:
            return None
        bits = rows.largest(packed.kernel, _arrays(packed, band.shape), self._scratch(band.shape))
        return torch.tensor(bits, dtype=torch.int32).view(torch.float32) if bits <= _LARGEST_BITS else None

    def compare(self, ours: Band, theirs: Band, absolute: Tensor, relative: float) -> tuple[float, float] | None:
        """Sums of squares: of the differences, and of theirs. None where any difference is too large.

        absolute: float32 [rows, groups], groups of a multiple of 16 columns, what a number may be off; or by `relative`
        of its size, whichever is more.
        """
        both = _both(ours, theirs)
        if both is None:
            return None
        kernels, arrays = both
        limits = (absolute.contiguous().numpy(), relative)
        bits, (difference, reference, n_beyond) = rows.compare_rows(kernels, *arrays, limits, self._scratch(ours.shape))
        return None if n_beyond or bits > _LARGEST_BITS else (difference, reference)

    def judge(self, ours: Band, theirs: Band, limits: tuple[float, float, float]) -> tuple[float, float, float] | None:
        """Sums of squares: of the differences, of theirs, of the differences that rtn would leave.

        ours: integers of 4 or 8 bits under BF16 scales, found by least squared error. None where any group could not
        come of that. limits: see arithmetic.search_kernels.judge.
        """
        both, quantization = _both(ours, theirs), ours.quantization
        if both is None or both[0][0] != "affine" or quantization.scale_dtype != "BF16":
            return None
        kernels, arrays = both
        coding = (quantization.bits, quantization.symmetric)
        bits, totals = rows.judge_rows(kernels, *arrays, coding, limits, self._scratch(ours.shape))
        difference, reference, by_rtn, n_bad = totals
        return None if n_bad or bits > _LARGEST_BITS else (difference, reference, by_rtn)

    def judge_blocks(
        self, ours: Band, theirs: Band, packing: RowPacking, absolute: Tensor, more: tuple[float, float]
    ) -> tuple[float, float, float] | None:
        """The same of FP4 in blocks of 16 columns, which `packing` would make of theirs.

        None where any weight is off by more than `absolute` of its block, or the squared error of a block exceeds that
        of the nearest codes under its scale, or that which rtn leaves, by more than the factors `more`.
        """
        both = _both(ours, theirs)
        if both is None or packing.kernel not in rows.BLOCK_ENCODERS:
            return None
        numbers = np.array([*packing.numbers, *more], np.float32)
        limits = absolute.contiguous().numpy()
        kernels = (*both[0], packing.kernel)
        bits, totals = rows.judge_blocks(kernels, *both[1], numbers, limits, self._scratch(ours.shape))
        difference, reference, by_rtn, n_bad = totals
        return None if n_bad or bits > _LARGEST_BITS else (difference, reference, by_rtn)

    def _outputs(self, n_rows: int, widths: tuple[int, int, int]) -> tuple[Array, Array, Array]:
        """Three arrays [rows, width] in the one buffer, each aligned for any dtype."""
        starts = np.cumsum([0, *(-(-n_rows * width // 64) * 64 for width in widths)])
        if len(self._out) < starts[-1]:
            self._out = np.empty(starts[-1], np.uint8)
        first, second, third = (
            self._out[start : start + n_rows * width].reshape(n_rows, width)
            for start, width in zip(starts, widths, strict=False)
        )
        return first, second, third

    def _scratch(self, shape: Shape) -> npt.NDArray[np.float32]:
        if self._work.shape[1] < shape[1] + _PADDING:
            self._work = np.empty((3, shape[1] + _PADDING), np.float32)
        return self._work


def _packed(band: Band) -> PackedRows | None:
    """The band as a compiled decoder takes it; None where there is none for it."""
    packed_rows = FORMATS[band.quantization.format].packed_rows
    if packed_rows is None or band.shape[1] % _WIDTH:
        return None
    return packed_rows(band.parts, band.shape, band.quantization)


def _both(ours: Band, theirs: Band) -> tuple[tuple[str, str], tuple[rows.Band, rows.Band]] | None:
    packed = _packed(ours), _packed(theirs)
    if packed[0] is None or packed[1] is None:
        return None
    return (packed[0].kernel, packed[1].kernel), (_arrays(packed[0], ours.shape), _arrays(packed[1], theirs.shape))


def _arrays(packed: PackedRows, shape: Shape) -> rows.Band:
    return packed.codes.contiguous().numpy(), packed.factors.contiguous().numpy(), packed.rows_per_factor, shape[1]
