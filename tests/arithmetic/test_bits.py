"""Packing equals plain arithmetic on one long number, and the library's words."""

import pytest
import torch
from slow_twins import integers, packers

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


@pytest.mark.parametrize("width", [3, 5, 6, 7])
def test_planes_hold_the_bits_apart(width):
    values = codes(5, 96, width)
    assert torch.equal(bits.unpack_planes(packers.planes(values, width), width, 96), values)


def test_a_plane_of_three_bits_by_hand():
    """Number 0 is 7, number 16 is 5: two bits each in the words of 16, then the third bits in a word of 32."""
    words = torch.tensor([[3, 1, 1 | 1 << 16]], dtype=torch.int32)
    assert bits.unpack_planes(words, 3, 32)[0].tolist() == [7] + [0] * 15 + [5] + [0] * 15


@pytest.mark.parametrize(("width", "word", "sum_"), [(4, -1, 0x11111110), (8, 0x00FF, 0x01010200), (2, 3, 0x55555558)])
def test_a_number_is_added_to_whole_words_and_carries(width, word, sum_):
    """As gptqmodel 7.7.0 adds it: 15 + 1 in the lowest field is 0, and the next field has one more."""
    assert bits.add_to_fields(torch.tensor([[word]], dtype=torch.int32), width, 1).tolist() == [[sum_]]


def test_of_three_bits_no_field_carries():
    words = torch.tensor([integers.pack_dense([7, 0] * 16, 3)], dtype=torch.int32)
    assert bits.add_to_fields(words, 3, 1).tolist() == [integers.pack_dense([0, 1] * 16, 3)]
