"""FP8 and FP4 numbers equal their definitions, bit by bit."""

import math

import pytest
import torch
from slow_twins import floats

from mtpforge.arithmetic import affine, float4, float8, scales
from mtpforge.errors import MtpforgeError


def test_every_e4m3_byte_is_the_number_of_the_definition():
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn)
    for decoded in (
        float8.to_float32(every),
        float8.to_float32(every[:255]),
        float8.to_float32(every[:255].contiguous()),
    ):
        for byte, number in enumerate(decoded.tolist()):
            wanted = floats.e4m3(byte)
            assert math.copysign(1, number) == math.copysign(1, wanted) or math.isnan(wanted)
            assert number == wanted or (math.isnan(number) and math.isnan(wanted)), byte


def test_every_nibble_is_the_number_of_the_definition_low_nibble_first():
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).reshape(16, 16)
    decoded = float4.decode(every, torch.full((16, 2), 2.0), signed_zero=True).flatten().tolist()
    wanted = [2 * floats.e2m1(nibble) for byte in range(256) for nibble in (byte & 15, byte >> 4)]
    assert [(n, math.copysign(1, n)) for n in decoded] == [(n, math.copysign(1, n)) for n in wanted]
    positive = float4.decode(every, torch.full((16, 2), 2.0), signed_zero=False)
    assert positive.flatten().tolist() == wanted
    assert not torch.signbit(positive[positive == 0]).any()


def test_fp4_rounds_to_the_nearest_code_and_ties_to_the_even_one():
    borders = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    near = torch.cat(
        [torch.nextafter(borders, torch.zeros(7)), borders, torch.nextafter(borders, torch.full((7,), 9.0))]
    )
    more = torch.linspace(0, 7, 1000)
    numbers = torch.cat([near, more, torch.tensor([0.0, -0.0, 6.0, 448.0, 1e-45, -1e-45])])
    numbers = torch.cat([numbers, -numbers])
    padded = torch.nn.functional.pad(numbers, (0, -len(numbers) % 16)).reshape(1, -1)
    packed = float4.encode(padded, torch.ones(1, padded.shape[1] // 16))[0]
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten().tolist()
    assert codes[: len(numbers)] == [floats.nearest_e2m1(number) for number in numbers.tolist()]


def test_encoding_leaves_its_input_alone():
    weight = torch.randn(4, 32)
    before = weight.clone()
    float4.encode(weight, torch.ones(4, 2))
    float8.encode(weight, torch.ones(4, 1))
    affine.quantize(weight.view(4, 2, 16), torch.ones(4, 2), None, 4)
    scales.group_largest(weight)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("dtype", "eps"), [(torch.bfloat16, 2.0**-7), (torch.float32, 2.0**-23), (torch.float8_e4m3fn, 0.125)]
)
def test_no_stored_scale_is_zero(dtype, eps):
    assert scales.as_stored(torch.zeros(2), dtype).tolist() == [eps, eps]


def test_a_scale_beyond_the_dtype_is_its_largest_number():
    assert scales.as_stored(torch.tensor([math.inf]), torch.float8_e4m3fn).tolist() == [448.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_largest_magnitude_of_a_broken_weight_is_an_error(value):
    weight = torch.ones(3, 5)
    weight[1, 4] = value
    with pytest.raises(MtpforgeError, match="a weight is NaN or Inf"):
        scales.largest(weight)


def test_the_largest_magnitude_may_be_negative_or_of_nothing():
    assert scales.largest(torch.tensor([[1.0, -3.0]])) == 3
    assert scales.largest(torch.empty(0, 4)) == 0
