"""Weights as each format stores them, by plain arithmetic that shares nothing with mtpforge.

A writer takes a weight, float32 [out, in], and gives a `Stored`: its parts by suffix, the values that a reader must
find in them, and how far these may lie from the weight: half a step of the codes, and what the scale's dtype adds.
GPTQ, AWQ, MLX and Quark's INT4 are packed in `slow_twins/packers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from slow_twins import packers
from slow_twins.layouts import E2M1
from torch import Tensor

ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-20}  # what a scale loses, and room
LARGEST = 448.0  # of E4M3


@dataclass(frozen=True)
class Stored:
    """values, bound: float32 [out, in]."""

    parts: dict[str, Tensor]
    values: Tensor
    bound: Tensor


def plain(weight, dtype):
    stored = weight.to(dtype)
    return Stored({"weight": stored}, stored.float(), weight.abs() * 2.0**-10 + 2.0**-24)


# Integers


def rounded(weight, bits, size, dtype, *, symmetric):
    """Codes [out, in] and zero points [out, groups], both from 0, scales, values and bound."""
    groups, most = weight.unflatten(1, (-1, size or weight.shape[1])), 2**bits - 1
    if symmetric:
        scale = (groups.abs().amax(-1) / (most / 2)).to(dtype)
        zero = torch.full(scale.shape, 2 ** (bits - 1))
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = ((high - low) / most).to(dtype)
        zero = (-low / scale.float()).round().long().clamp(0, most)
    step = scale.float()[..., None]
    codes = ((groups / step).round().long() + zero[..., None]).clamp(0, most)
    values = ((codes - zero[..., None]) * step).flatten(1)
    bound = (step * (0.5 + 2**bits * ULP[dtype])).expand_as(groups).flatten(1)
    return codes.flatten(1), zero, scale, values, bound


def packed(weight, bits, size=None, *, dtype=torch.bfloat16, symmetric=None, whole=False):
    """compressed-tensors' pack-quantized, even bits symmetric if not told. whole: codes in a word, as before 0.18."""
    symmetric = bits % 2 == 0 if symmetric is None else symmetric
    codes, zero, scale, values, bound = rounded(weight, bits, size, dtype, symmetric=symmetric)
    pack = whole_codes if whole else packers.streams
    parts = {"weight_packed": pack(codes, bits), "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}
    if not symmetric:
        parts["weight_zero_point"] = pack(zero.t(), bits).t()
    return Stored(parts, values, bound)


def whole_codes(rows, bits):
    """32 // bits codes a word, lowest bits first; what is left of a word is 0."""
    each = 32 // bits
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % each)).unflatten(1, (-1, each))
    return packers.signed((rows << torch.arange(0, each * bits, bits)).sum(-1))


def bytes_of_int8(weight, dtype, *, symmetric=True, flat=False):
    """int-quantized; flat: a scale of shape [out], as Quark and ModelOpt write them."""
    codes, zero, scale, values, bound = rounded(weight, 8, None, dtype, symmetric=symmetric)
    parts = {"weight": (codes - 128).to(torch.int8), "weight_scale": scale.flatten() if flat else scale}
    return Stored(parts if symmetric else parts | {"weight_zero_point": (zero - 128).to(torch.int8)}, values, bound)


def w4afp8(weight):
    codes, _, scale, values, bound = rounded(weight, 4, 128, torch.bfloat16, symmetric=True)
    signed = codes - 8
    return Stored(
        {"weight": pairs(signed[:, 0::2], signed[:, 1::2]).view(torch.int8), "weight_scale_inv": scale}, values, bound
    )


def modelopt_int4(weight):
    """Rows in pairs, of a weight whose inputs were smoothed."""
    smoothing = torch.linspace(0.5, 2, weight.shape[1])
    codes, _, scale, values, bound = rounded(weight / smoothing, 4, 128, torch.float32, symmetric=True)
    signed = codes - 8
    parts = {"weight": pairs(signed[0::2], signed[1::2]), "weight_scale": scale, "pre_quant_scale": smoothing}
    return Stored(parts, values * smoothing, bound * smoothing)


def pairs(low, high):
    return ((low & 15) | ((high & 15) << 4)).to(torch.uint8)


def gptq(weight, bits, size, **how):
    parts, values = packers.gptq(weight, bits, size, **how)
    order = parts.get("g_idx", torch.arange(weight.shape[1]) // size).long()
    return Stored(parts, values, parts["scales"].float().t()[:, order] * (0.5 + 2**bits * ULP[torch.float16]))


def awq(weight, size):
    parts, values = packers.awq(weight, size)
    step = parts["scales"].float().t().repeat_interleave(size, 1)
    return Stored(parts, values, step * (0.5 + 16 * ULP[torch.float16]))


def quark_int4(weight, size, **how):
    parts, values = packers.quark_int4(weight, size, **how)
    step = parts["weight_scale"].float().t().repeat_interleave(size, 1)
    return Stored(parts, values, step * (0.5 + 16 * ULP[torch.float16]))


def mlx(weight, bits, size):
    parts, values = packers.mlx(weight, bits, size)
    step = parts["scales"].float().repeat_interleave(size, 1)
    return Stored(parts, values, step * (1 + 3 * (2**bits - 1) * 2.0**-8))


# Small floats


def fp8(weight, covers, names=("weight", "weight_scale"), shape=None, dtype=torch.float32):
    """covers: rows and columns under one scale. shape: of the scales as stored, where it is not their grid's."""
    rows, columns = covers
    whole = torch.nn.functional.pad(weight, (0, -weight.shape[1] % columns, 0, -weight.shape[0] % rows))
    grid = whole.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    scale = (grid.abs().amax((1, 3)) / LARGEST).to(dtype)
    step = scale.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    step = step[: weight.shape[0], : weight.shape[1]]
    codes = (weight / step).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    bound = (weight.abs() / 16).maximum(step * 2**-10) * 1.0001 + weight.abs() * ULP[dtype]
    parts = {names[0]: codes, names[1]: scale if shape is None else scale.view(shape(scale))}
    return Stored(parts, codes.float() * step, bound)


def nibbles_of(numbers):
    """Nearest codes of E2M1, two to a byte, and what they stand for."""
    code = (numbers.abs()[..., None] - E2M1[:8]).abs().argmin(-1) + 8 * (numbers < 0)
    return pairs(code[:, 0::2], code[:, 1::2]), E2M1[code]


def nvfp4(weight, amax, modelopt):
    """amax: of all weights under one matrix-wide scale."""
    of_all = torch.tensor(amax / (6 * LARGEST))
    blocks = weight.unflatten(1, (-1, 16)).abs().amax(-1)
    scale = (blocks / 6 / of_all).clamp(2.0**-9, LARGEST).to(torch.float8_e4m3fn)
    step = (scale.float() * of_all).repeat_interleave(16, 1)
    codes, numbers = nibbles_of(weight / step)
    if modelopt:
        parts = {"weight": codes, "weight_scale": scale, "weight_scale_2": of_all, "input_scale": torch.tensor(0.125)}
    else:
        parts = {"weight_packed": codes, "weight_scale": scale, "weight_global_scale": 1 / of_all.view(1)}
    return Stored(parts, numbers * step, step * 1.001)


def quark_nvfp4(weight, amax):
    stored = nvfp4(weight, amax, modelopt=True)
    stored.parts["input_scale_2"] = stored.parts.pop("input_scale")
    return stored


def mxfp4(weight, name="weight_packed"):
    exponent, step = exponents(weight, 6.0)
    codes, numbers = nibbles_of(weight / step)
    return Stored({name: codes, "weight_scale": exponent}, numbers * step, step * 1.0)


def mxfp8(weight):
    exponent, step = exponents(weight, LARGEST)
    codes = (weight / step).to(torch.float8_e4m3fn)
    return Stored(
        {"weight": codes, "weight_scale": exponent}, codes.float() * step, (weight.abs() / 16).maximum(step * 2**-10)
    )


def exponents(weight, largest):
    """The least power of two under which nothing is cut, for every 32 columns; and as a step of every element."""
    blocks = weight.unflatten(1, (-1, 32)).abs().amax(-1)
    exponent = (blocks / largest).log2().ceil()
    return (exponent + 127).to(torch.uint8), (2.0**exponent).repeat_interleave(32, 1)
