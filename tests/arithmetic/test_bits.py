"""Packing equals plain arithmetic on one long number, and the library's words."""

import pytest
import torch
from slow_twins import integers

from mtpforge.arithmetic import bits


def codes(rows, columns, width):
    g = torch.Generator().manual_seed(rows * 1000 + columns * 10 + width)
    return torch.randint(0, 1 << width, (rows, columns), generator=g, dtype=torch.uint8)


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize(("rows", "columns"), [(3, 64), (1, 33), (5, 20), (2, 1), (4, 7), (1, 100)])
def test_words_are_a_dense_little_endian_stream(rows, columns, width):
    values = codes(rows, columns, width)
    packed = bits.pack(values, width)
    assert packed.tolist() == [integers.pack_dense(row.tolist(), width) for row in values]
    assert torch.equal(bits.unpack(packed, width, columns), values)


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize(("rows", "columns"), [(3, 64), (1, 33), (2, 1), (4, 7)])
def test_old_words_hold_whole_values_only(rows, columns, width):
    values = codes(rows, columns, width)
    packed = torch.tensor([integers.pack_legacy(row.tolist(), width) for row in values], dtype=torch.int32)
    assert torch.equal(bits.unpack_legacy(packed, width, columns), values)


def test_three_bits_straddle_words_as_in_the_library():
    """compressed-tensors 0.20.0, pack_to_int32 of codes (i % 8) - 4: the words 88fac688 c688fac6 fac688fa."""
    packed = bits.pack((torch.arange(32) % 8).to(torch.uint8).reshape(1, -1), 3)
    assert [f"{word & 0xFFFFFFFF:08x}" for word in packed[0].tolist()] == ["88fac688", "c688fac6", "fac688fa"]


def test_places_past_the_last_value_hold_zero():
    """int4 of 20 columns, all of them number 0, which is code 8: the library's last word is 0x00008888."""
    packed = bits.pack(torch.full((1, 20), 8, dtype=torch.uint8), 4)
    assert packed[0, -1] == 0x8888


@pytest.mark.parametrize("width", [3, 4])
def test_strided_codes_and_words_are_packed_as_plain_ones(width):
    values = codes(8, 6, width)
    packed = bits.pack(values.t(), width)
    assert torch.equal(packed, bits.pack(values.t().contiguous(), width))
    for words in (packed.t().contiguous().t(), packed[:1].t().contiguous().t(), packed[:1]):
        assert torch.equal(bits.unpack(words, width, 8), values.t()[: len(words)])
