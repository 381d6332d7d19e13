"""GPTQ's codes: llm-compressor's own for the same weights and Hessians, and the fence around them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtpforge.arithmetic import affine, gptq

CASES = {
    "int4-g32-asym": (4, 32, False),
    "int4-g128-sym": (4, 128, True),
    "int8-g32-asym": (8, 32, False),
    "int8-channel": (8, 160, True),
    "dead": (4, 32, False),
    "few": (4, 32, False),
}
DEAD = [7, 40, 41]


@pytest.fixture(scope="module")
def stored():
    return load_file(Path(__file__).parents[1] / "data" / "gptq" / "llm-compressor.safetensors")


def parts_of(stored, name):
    """Groups of the weight, stored scale and zero point (unsigned), H, and the values that llm-compressor made."""
    bits, size, symmetric = CASES[name]
    weight, hessian, scale, zero, made = (
        stored[f"{name}.{part}"] for part in ("weight", "hessian", "scale", "zero_point", "quantized")
    )
    unsigned = None if symmetric else (zero.float() + 2 ** (bits - 1)).to(torch.uint8)
    return weight.view(len(weight), -1, size), scale, unsigned, hessian.clone(), made, bits


def values(codes, scale, zero, bits):
    middle = torch.full_like(scale, 2 ** (bits - 1)) if zero is None else zero.float()
    return ((codes.float() - middle[..., None]) * scale[..., None]).flatten(1)


@pytest.mark.parametrize("name", CASES)
def test_codes_are_llm_compressors(stored, name):
    weight, scale, zero, hessian, made, bits = parts_of(stored, name)
    codes = gptq.codes(weight, scale, zero, bits, gptq.factor(hessian))
    assert codes.dtype is torch.uint8
    ours = values(codes, scale, zero, bits)
    differing = (ours != made).any(0).nonzero().flatten().tolist()
    assert differing == (DEAD if name == "dead" else [])
    nearest = values(affine.quantize(weight, scale, zero, bits), scale, zero, bits)
    assert int((ours != nearest).sum()) > ours.numel() / 10  # else nothing was propagated


def test_dead_columns_keep_their_nearest_codes(stored):
    """llm-compressor sets their weights to zero."""
    weight, scale, zero, hessian, made, bits = parts_of(stored, "dead")
    assert not made[:, DEAD].any()
    ours = gptq.codes(weight, scale, zero, bits, gptq.factor(hessian)).flatten(1)
    nearest = affine.quantize(weight, scale, zero, bits).flatten(1)
    assert torch.equal(ours[:, DEAD], nearest[:, DEAD])


@pytest.mark.parametrize("name", ["int4-g32-asym", "int8-channel"])
def test_rows_do_not_touch_each_other(stored, name):
    weight, scale, zero, hessian, _, bits = parts_of(stored, name)
    upper = gptq.factor(hessian)
    whole = gptq.codes(weight, scale, zero, bits, upper)
    rows = torch.tensor([9, 2, 14])
    some = gptq.codes(weight[rows], scale[rows], None if zero is None else zero[rows], bits, upper)
    assert torch.equal(whole[rows], some)


def test_without_a_factor_codes_are_the_nearest(stored):
    weight, scale, zero, _, _, bits = parts_of(stored, "int4-g32-asym")
    assert torch.equal(gptq.codes(weight, scale, zero, bits, None), affine.quantize(weight, scale, zero, bits))


def test_factor_is_the_one_of_the_dampened_inverse():
    x = torch.randn(200, 24, generator=torch.Generator().manual_seed(0)).double()
    hessian = x.T @ x / 7
    dampened = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(24)
    upper = gptq.factor(hessian.float())
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.double().T @ upper.double() @ dampened, torch.eye(24).double(), rtol=0, atol=1e-4)


def test_what_is_no_hessian_has_no_factor():
    assert gptq.factor(torch.tensor([[1.0, 9.0], [9.0, 1.0]])) is None


def fenced(outlier, bits=4, size=32):
    """Row 1 of three has an outlier in a group of its own: its scale, so its errors, dwarf those of the others."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(3, 8, size, generator=generator) * 0.02
    weight[1, 0, 0] = outlier
    x = torch.randn(4000, 8 * size, generator=generator)
    x[:, size : 2 * size] = x[:, :size] + 0.1 * x[:, size : 2 * size]  # which makes up for what its twin gets wrong
    scale, zero = affine.qparams(weight, bits, torch.bfloat16, symmetric=False)
    upper = gptq.factor(x.T @ x)
    nearest = affine.quantize(weight, scale, zero, bits)
    return gptq.codes(weight, scale, zero, bits, upper), nearest, gptq._propagated(weight, scale, zero, bits, upper)


def test_a_row_led_too_far_keeps_its_nearest_codes():
    codes, nearest, led = fenced(outlier=4.0)
    assert not torch.equal(led[1], nearest[1])
    assert torch.equal(codes[1], nearest[1])
    assert torch.equal(codes[[0, 2]], led[[0, 2]])
    codes, nearest, led = fenced(outlier=0.08)
    assert torch.equal(codes, led)
