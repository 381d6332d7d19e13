"""Checksums of the range cache: every byte in exactly one piece, with the CRC-32 that binascii computes."""

from __future__ import annotations

import binascii
import random

import pytest

from mtpforge.checkpoint.hub import checksums
from mtpforge.checkpoint.hub.checksums import Checksums


def cut(raw, rng):
    """The bytes in chunks of random sizes, as a network delivers them."""
    at = 0
    while at < len(raw):
        size = rng.randrange(1, 5000)
        yield raw[at : at + size]
        at += size


@pytest.mark.parametrize("n_bytes", [0, 1, 999, 1000, 1001, 2000, 12345])
@pytest.mark.parametrize("start", [0, 7])
def test_each_byte_is_in_one_piece_with_its_crc(monkeypatch, n_bytes, start):
    monkeypatch.setattr(checksums, "PIECE_BYTES", 1000)
    rng = random.Random(n_bytes)
    raw = rng.randbytes(n_bytes)
    taken = Checksums(start)
    for chunk in cut(raw, rng):
        taken.add(chunk)
    slices = [raw[at : at + 1000] for at in range(0, n_bytes, 1000)]
    bounds = [(start + at, start + min(at + 1000, n_bytes)) for at in range(0, n_bytes, 1000)]
    pieces = taken.pieces()
    assert [piece.crc for piece in pieces] == [binascii.crc32(part) for part in slices]
    assert [(piece.range.start, piece.range.stop) for piece in pieces] == bounds
