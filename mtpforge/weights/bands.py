"""How a weight is cut into bands of rows, and what of it is held whole meanwhile. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mtpforge.formats import FORMATS
from mtpforge.formats.format import BAND_ROWS, Specs
from mtpforge.tensors import Quantization, Shape

BAND_ELEMENTS: Final = 4 << 20  # weights decoded at a time: 16 MiB of float32 stay near the caches and bound the memory


def band_rows(shape: Shape) -> int:
    """Rows of one band of a weight [out, in]: a multiple of BAND_ROWS, about BAND_ELEMENTS weights."""
    return max(BAND_ELEMENTS // max(shape[1], 1) // BAND_ROWS, 1) * BAND_ROWS


def bands(shape: Shape, height: int = 0) -> Iterator[tuple[int, int]]:
    """[first, last) of every band, in order. height: rows of one, a multiple of BAND_ROWS; 0 for `band_rows`."""
    height = height or band_rows(shape)
    return ((first, min(first + height, shape[0])) for first in range(0, shape[0], height))


def held_bytes(shape: Shape, quantization: Quantization, parts: Specs) -> int:
    """Bytes of the parts that are in memory as a whole while a weight is read, or written, band by band.

    Those whose rows are not one after the other in the file: each entry of the leading axis has some of every row.
    """
    rows = FORMATS[quantization.format].rows_in_parts(shape, quantization, parts)
    return sum(spec.n_bytes for suffix, spec in parts.items() if suffix in rows and rows[suffix].axis)
