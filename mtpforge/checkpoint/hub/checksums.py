"""CRC-32 of what lies in the range cache, a MiB at a time, taken from the bytes as they come over the wire.

It is there against a disk that rots and a write that tore, not against a forger, who could write the checksums too: so
the cheapest sum that finds every burst of up to 32 bits, and misses one other damage in 2^32. On one core of a Xeon at
2.8 GHz zlib 1.2.13 takes 3.2 GB/s, SHA-256 1.1, BLAKE2b 0.6; it lets other threads run meanwhile.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

from mtpforge.checkpoint.hub.ranges import Range

PIECE_BYTES: Final = 1 << 20  # what is read at least to check one byte, and fetched again where one is damaged


@dataclass(frozen=True, slots=True)
class Piece:
    """Up to PIECE_BYTES of a file that are in the cache, and their CRC-32."""

    range: Range
    crc: int


class Checksums:
    """Pieces of a stretch of bytes that comes in order, in chunks of any size."""

    def __init__(self, start: int) -> None:
        self._start = self._position = start
        self._crc = 0
        self._whole: list[Piece] = []

    def add(self, chunk: bytes) -> None:
        """Take the bytes that follow."""
        view = memoryview(chunk)
        while view:
            taken = view[: self._start + PIECE_BYTES - self._position]
            self._crc = zlib.crc32(taken, self._crc)
            self._position += len(taken)
            view = view[len(taken) :]
            if self._position == self._start + PIECE_BYTES:
                self._cut()

    def pieces(self) -> tuple[Piece, ...]:
        """What came so far, cut every PIECE_BYTES."""
        if self._position > self._start:
            self._cut()
        return tuple(self._whole)

    def _cut(self) -> None:
        self._whole.append(Piece(Range(self._start, self._position), self._crc))
        self._start, self._crc = self._position, 0
