from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpforge.checkpoint.hub.ranges import Range, coalesce, split, subtract

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda p: Range(p[0], p[0] + p[1])), max_size=8)


def covered(ranges) -> set[int]:
    return {byte for r in ranges for byte in range(r.start, r.stop)}


@given(RANGES, st.integers(0, 9))
def test_coalescing_keeps_every_byte_and_leaves_only_gaps_wider_than_asked(ranges, gap):
    joined = coalesce(ranges, gap)
    assert covered(joined) >= covered(ranges)
    assert all(b.start - a.stop > gap for a, b in pairwise(joined))
    assert all(r.start in covered(ranges) and r.stop - 1 in covered(ranges) for r in joined)


@given(RANGES)
def test_coalescing_without_a_gap_adds_no_byte(ranges):
    assert covered(coalesce(ranges)) == covered(ranges)


@given(RANGES, RANGES)
def test_subtracting_leaves_exactly_what_is_not_there(wanted, have):
    left = subtract(wanted, have)
    assert covered(left) == covered(wanted) - covered(have)
    assert left == coalesce(left)


@given(RANGES, st.integers(1, 7))
def test_splitting_keeps_the_bytes_in_order_and_bounds_each_part(ranges, most):
    parts = split(ranges, most)
    assert [b for r in parts for b in range(r.start, r.stop)] == [b for r in ranges for b in range(r.start, r.stop)]
    assert all(0 < r.n_bytes <= most for r in parts)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2)])
def test_a_range_that_is_none_is_refused(start, stop):
    with pytest.raises(ValueError, match="no range"):
        Range(start, stop)


def test_a_negative_gap_and_empty_parts_are_refused():
    with pytest.raises(ValueError, match="a gap of -1 bytes"):
        coalesce([], -1)
    with pytest.raises(ValueError, match="parts of 0 bytes"):
        split([], 0)
