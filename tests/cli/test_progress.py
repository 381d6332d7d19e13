"""Progress that does not flood a log and does not go silent."""

from __future__ import annotations

import pytest

from mtpforge import units
from mtpforge.cli.progress import Lines
from mtpforge.report import Progress


@pytest.fixture
def lines():
    said, now = [], [0.0]
    return Lines(said.append, lambda: now[0]), said, now


def advance(lines: Lines, now: list[float], seconds: float, *shares: int) -> None:
    for share in shares:
        now[0] += seconds
        lines.advance(Progress("build", share * 10_000_000, 1_000_000_000))


def test_a_line_every_ten_percent(lines):
    feed, said, now = lines
    advance(feed, now, 1.0, *range(1, 101))
    assert [line.split()[1] for line in said] == [str(n) for n in range(10, 101, 10)]
    assert said[0] == "build     10 %   100 MB of 1.00 GB"


def test_a_slow_phase_speaks_every_thirty_seconds(lines):
    feed, said, now = lines
    advance(feed, now, 31.0, 1, 1, 1)
    assert len(said) == 2


def test_a_short_phase_is_one_line(lines):
    feed, said, now = lines
    advance(feed, now, 0.0001, *range(1, 101))
    assert said == ["build    100 %   1.00 GB of 1.00 GB"]


def test_a_finished_phase_is_said_once(lines):
    feed, said, now = lines
    advance(feed, now, 1.0, 100, 100, 100)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (5_940_000_000, "5.94 GB"),
        (812e9, "812 GB"),
        (1.49e12, "1.49 TB"),
    ],
)
def test_file_sizes_are_decimal(n_bytes, text):
    assert units.file_size(n_bytes) == text


@pytest.mark.parametrize(("n_bytes", "text"), [(1 << 20, "1.00 MiB"), (1 << 30, "1.00 GiB"), (3 << 28, "0.75 GiB")])
def test_memory_is_binary(n_bytes, text):
    assert units.memory_size(n_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(8.2, "8 s"), (125, "2 min 5 s"), (4320, "1 h 12 min")])
def test_durations_are_short(seconds, text):
    assert units.duration(seconds) == text
