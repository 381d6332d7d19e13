"""The memory that a plan states, by hand: decoding and encoding a band holds 16 bytes a weight, fitting it 32."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_plans import DENSE

from mtpforge.planning.facts import peak_bytes
from mtpforge.planning.steps import Move, Step
from mtpforge.weights.bands import band_rows, bands

GATE = Move("gate", "routed experts", (2048, 6144), {}, DENSE, DENSE, "encode", (), "because")
# 4 Mi weights a band, in whole rows of 128: 640 of [2048, 6144], all 2048 of [6144, 2048], all of a small one
BANDS = [((2048, 6144), 640 * 6144), ((6144, 2048), 2048 * 2048), ((1024, 1024), 1024 * 1024)]


@pytest.mark.parametrize(("shape", "band"), BANDS)
def test_a_band_that_is_encoded_takes_four_float32_copies(shape, band):
    assert peak_bytes(Step(moves=(replace(GATE, shape=shape),))) == band * 4 * 4


@pytest.mark.parametrize(("shape", "band"), BANDS)
def test_fitting_takes_as_much_again_and_three_square_matrices(shape, band):
    step = Step(moves=(replace(GATE, shape=shape, scales="gptq"),))
    assert peak_bytes(step) == band * 8 * 4 + 3 * shape[1] * shape[1] * 4


def test_the_largest_of_a_step_counts_and_a_copy_takes_a_buffer():
    small = replace(GATE, shape=(1024, 1024))
    assert peak_bytes(Step(moves=(small, GATE, small))) == 640 * 6144 * 16
    assert peak_bytes(Step(moves=(replace(GATE, action="copy"),))) == 1 << 20
    assert peak_bytes(Step(moves=(replace(GATE, action="copy"),), ties=True)) == 640 * 6144 * 16  # may be made anew


def test_a_weight_too_wide_for_a_band_is_cut_into_the_least_rows():
    """128 rows of more than 32,768 columns are over 4 Mi weights; a weight without columns has no rows too many."""
    assert [band_rows((256, width)) for width in (16_384, 16_385, 32_768, 40_000)] == [256, 128, 128, 128]
    assert list(bands((300, 40_000))) == [(0, 128), (128, 256), (256, 300)]
    assert list(bands((300, 0))) == [(0, 300)]
