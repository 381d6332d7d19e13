"""The range cache on a disk that tears, rots and forgets: what it gives back is what came, or it is missing."""

from __future__ import annotations

import errno
import os

import pytest

from mtpforge.checkpoint.hub import cache
from mtpforge.checkpoint.hub.checksums import Checksums, Piece
from mtpforge.checkpoint.hub.ranges import Range
from mtpforge.errors import MtpforgeError

IDENTITY = cache.Identity(1000, "e")


def store(file, start, raw):
    """As a fetch does it."""
    taken = Checksums(start)
    with file.locked(), file.filling(IDENTITY):
        file.put(start, raw)
        taken.add(raw)
        file.finish(taken.pieces())


@pytest.fixture
def file(tmp_path):
    return cache.RangeFile(tmp_path / "x.safetensors")


def journal(file):
    return file.path.with_name(f"{file.path.name}.ranges")


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    assert bytes(raw) != path.read_bytes()
    path.write_bytes(raw)


def test_a_journal_line_cut_short_is_fetched_again(file):
    store(file, 0, b"a" * 100)
    store(file, 200, b"b" * 123)
    whole = journal(file).read_bytes()
    journal(file).write_bytes(whole[:-2])
    assert cache.RangeFile(file.path).held == (Range(0, 100),)
    store(file, 400, b"c" * 10)
    assert cache.RangeFile(file.path).held == (Range(0, 100), Range(400, 410))


@pytest.mark.parametrize("at", [0, 50, 99])
def test_a_bit_that_the_disk_flipped_is_found(file, at):
    store(file, 0, b"a" * 100)
    store(file, 100, b"b" * 100)
    flip(file.path, at)
    reader = cache.RangeFile(file.path)
    assert [piece.range for piece in reader.damaged(Range(10, 20))] == [Range(0, 100)]
    assert reader.damaged(Range(100, 200)) == ()
    assert [piece.range for piece in reader.damaged(Range(99, 101))] == [Range(0, 100)]


def test_bytes_that_the_disk_lost_are_found(file):
    store(file, 900, b"a" * 100)
    with file.path.open("r+b") as opened:
        opened.seek(900)
        opened.write(bytes(100))
    assert [piece.range for piece in cache.RangeFile(file.path).damaged(Range(950, 951))] == [Range(900, 1000)]


def test_what_is_damaged_and_dropped_is_missing_until_it_comes_again(file):
    store(file, 0, b"a" * 100)
    store(file, 100, b"b" * 100)
    flip(file.path, 3)
    with file.locked():
        file.forget(file.damaged(Range(0, 1000)))
    again = cache.RangeFile(file.path)
    assert again.held == (Range(100, 200),)
    assert again.damaged(Range(0, 1000)) == ()
    store(again, 0, b"a" * 100)
    assert cache.RangeFile(file.path).held == (Range(0, 200),)
    assert cache.RangeFile(file.path).damaged(Range(0, 200)) == ()


def test_what_was_compared_with_the_hub_stays_compared(file):
    store(file, 0, b"a" * 100)
    with file.locked(), file.filling(IDENTITY):
        file.settle()
    store(file, 100, b"b" * 50)
    assert [piece.range for piece in cache.RangeFile(file.path).unchecked] == [Range(100, 150)]
    assert cache.RangeFile(file.path).held == (Range(0, 150),)


@pytest.mark.parametrize("layout", [b"", b', "layout": 3', b', "layout": null'])
def test_a_journal_of_another_layout_counts_as_empty(file, layout):
    store(file, 0, b"a" * 100)
    line = b"0 100 00000000\n" if layout else b"0 100\n"  # as they were before there were checksums
    journal(file).write_bytes(b'{"bytes": 1000, "etag": "e"' + layout + b"}\n" + line)
    assert cache.RangeFile(file.path).held == ()
    store(file, 100, b"b" * 100)
    assert cache.RangeFile(file.path).held == (Range(100, 200),)


@pytest.mark.parametrize(
    "line",
    [
        "100 50 00000000",
        "0 1001 00000000",
        "0 10 0",
        "0 10 0000000x",
        "0 10",
        "checked now",
        f"{1 << 70} {1 << 71} 00000000",
        "-1 5 00000000",
    ],
)
def test_a_line_that_cannot_be_ends_the_journal(file, line):
    store(file, 0, b"a" * 100)
    with journal(file).open("ab") as opened:
        opened.write(line.encode() + b"\n200 300 00000000\n")
    assert cache.RangeFile(file.path).held == (Range(0, 100),)


def test_a_journal_line_that_finds_no_room_is_taken_back(file, monkeypatch):
    store(file, 0, b"a" * 100)
    real = cache.os.pwrite

    def half(to, raw, at):
        monkeypatch.setattr(cache.os, "pwrite", full)
        return real(to, bytes(raw)[:5], at)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with file.locked(), file.filling(IDENTITY):
        monkeypatch.setattr(cache.os, "pwrite", half)
        with pytest.raises(MtpforgeError, match="the download cache is full"):
            file.finish([Piece(Range(100, 200), 0)])
        monkeypatch.undo()
        file.settle()
    assert cache.RangeFile(file.path).held == (Range(0, 100),)
    assert cache.RangeFile(file.path).unchecked == ()
