"""Where the parts of a weight lie, read as raw bytes: for the child of a reference check, whatever decodes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Final, TypeAlias

from mtpforge.tensors import DTYPES

BAND_ELEMENTS: Final = 1 << 20  # bounds the libraries' temporaries to some tens of MB


@dataclass(frozen=True, slots=True)
class Part:
    """Where a part lies: an absolute path, the bytes of it, dtype and shape.

    stride: bytes from a row to the next where others lie between them, else 0.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stride: int = 0

    def rows(self, first: int, last: int) -> tuple[bytearray, tuple[int, ...]]:
        """Bytes and shape of rows [first, last) of the leading axis; a scalar part is read whole."""
        n_rows, rest = (self.shape[0], self.shape[1:]) if self.shape else (1, ())
        row_bytes = prod(rest) * DTYPES[self.dtype].bits // 8
        first, last = (0, 1) if not self.shape else (min(first, n_rows), min(last, n_rows))
        buffer = bytearray((last - first) * row_bytes)
        with open(self.path, "rb", buffering=0) as file:  # noqa: PTH123 -- no buffer: a few rows of a large file
            if self.stride:
                rows = [
                    os.pread(file.fileno(), row_bytes, self.start + row * self.stride) for row in range(first, last)
                ]
                buffer[:] = b"".join(rows)
                n_read = len(buffer)
            else:
                n_read = os.preadv(file.fileno(), [buffer], self.start + first * row_bytes)
        if n_read != (last - first) * row_bytes:
            raise OSError(f"{self.path} ends early")
        return buffer, (last - first, *rest) if self.shape else ()


Parts: TypeAlias = dict[str, Part]
Rows: TypeAlias = tuple[int, int]


def bands(shape: tuple[int, int], rows: Rows) -> Iterator[Rows]:
    """Bands of a sample's rows, each a multiple of 128 but for the last."""
    step = max(BAND_ELEMENTS // max(shape[1], 1) // 128, 1) * 128
    for first in range(rows[0], rows[1], step):
        yield first, min(first + step, rows[1])
