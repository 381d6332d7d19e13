"""The sample that is fetched twice: random, never much, never nothing."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpforge.checkpoint.hub.agreement import draw
from mtpforge.checkpoint.hub.ranges import Range

KIB, MIB, GB = 1 << 10, 1 << 20, 10**9


def total(stretches):
    return sum(s.range.n_bytes for s in stretches)


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.lists(st.tuples(st.integers(0, 40 * GB), st.integers(1, 40 * MIB)), min_size=1, max_size=5),
        min_size=1,
    ),
    st.integers(),
)
def test_a_sample_is_part_of_what_came_and_at_most_a_hundredth(came, seed):
    parts = {name: [Range(start, start + n) for start, n in ranges] for name, ranges in came.items()}
    drawn = draw(parts, random.Random(seed))
    n_bytes = 0
    for ranges in parts.values():
        position = -1
        for start, stop in sorted((r.start, r.stop) for r in ranges):
            n_bytes += max(0, stop - max(start, position))
            position = max(position, stop)
    assert 1 <= len(drawn) <= 256
    assert 0 < total(drawn) <= max(64 * KIB, n_bytes // 100)
    for stretch in drawn:
        covered = sorted(
            r for r in parts[stretch.name] if r.start < stretch.range.stop and stretch.range.start < r.stop
        )
        assert covered
        assert covered[0].start <= stretch.range.start
        assert max(r.stop for r in covered) >= stretch.range.stop
    places = sorted((s.name, s.range.start, s.range.stop) for s in drawn)
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in itertools.pairwise(places))


@pytest.mark.parametrize(
    ("n_bytes", "n_stretches", "n_drawn"),
    [
        (100, 1, 100),
        (5 * MIB, 1, 64 * KIB),
        (500 * MIB, 64, 5 * MIB),
        (20_000 * MIB, 200, 200 * MIB),
        (30_000 * MIB, 256, 256 * MIB),
    ],
)
def test_a_hundredth_is_reached_in_few_requests(n_bytes, n_stretches, n_drawn):
    drawn = draw({"a": [Range(0, n_bytes)]}, random.Random(1))
    assert (len(drawn), total(drawn)) == (n_stretches, n_drawn)


def test_every_place_is_drawn_at_times():
    rng = random.Random(1)
    starts = {draw({"a": [Range(0, 20 * 64 * KIB)]}, rng)[0].range.start for _ in range(400)}
    assert starts == {i * 64 * KIB for i in range(20)}
