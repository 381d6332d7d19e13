"""How far a decoded weight may lie from the one that was encoded; `s` is the stored scale of the weight.

    floats      u |W|                                      u = 2^-8 (BF16), 2^-11 (F16): half a step
    integers    (0.5 + rounding of the scale) s            symmetric (2^b - 1) / 2 u, asymmetric (2^b - 1) u;
                                                           of F16 scales below 2^-14 u s is 2^-25
    with bias   (1.0 + 3 (2^b - 1) u) |s|                  MLX: the bias is one of the outermost numbers
    FP8 E4M3    max(|W| / 16, 2^-10 s)
    NVFP4       1.0 s                                      the widest gap of E2M1, between 4 and 6, is 2;
                6 * 2^-10 of the unit at least             block scales below 2^-6 have steps of 2^-9 only
    MXFP4       1.0 s                                      the same gap; up to 7 s is clipped to 6 s
    MXFP8       as FP8 E4M3

Each holds for float32 arithmetic against the *stored* scale; 1e-4 is added for float32's own rounding. Measured against
compressed-tensors 0.20.0 and nvidia-modelopt 0.47.0 on edge cases and heavy tails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mtpforge.tensors import Quantization, Shape

SLACK: Final = 1e-4
_TINY_BLOCK: Final = 6 * 2.0**-10  # 6 times half a step of a subnormal E4M3 scale: its block is cut off by that much
_LEAST: Final = 1e-37  # below it float32 and BF16 lose their own precision
_SUBNORMAL: Final = {torch.float16: 2.0**-25}  # half a step of numbers below 2^-14; those of BF16 and F32 are nothing
_STEP: Final = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 0.0}


@dataclass(frozen=True, slots=True)
class Limit:
    """How far a weight may be off: by `relative` of its own size or by `absolute`, whichever is more.

    absolute: float32 [rows or 1, groups], for groups of equally many columns.
    """

    relative: float
    absolute: Tensor

    def beyond(self, weight: Tensor, difference: Tensor) -> Tensor:
        """Where a difference (not negative, float32 [rows, in]) is more than allowed: bool [rows, in]; NaN is."""
        groups = (weight.shape[0], self.absolute.shape[1], -1)
        most = torch.maximum(weight.abs().mul_(self.relative).view(groups), self.absolute.unsqueeze(-1))
        return ~(difference.view(groups) <= most).view(weight.shape)


def floats(dtype: torch.dtype) -> Limit:
    """Of plain numbers: one rounding to nearest."""
    return Limit(_STEP[dtype] * (1 + SLACK), torch.full((1, 1), _LEAST))


def integers(scale: Tensor, quantization: Quantization, shape: Shape) -> Limit:
    """Of integers under scales of a group, a channel or the matrix.

    A scale that was rounded down to its dtype clips the ends of its range, by as many steps as there are codes.
    """
    codes = (2**quantization.bits - 1) * (0.5 if quantization.symmetric else 1.0)
    step = scale.float() * _STEP[scale.dtype]
    rounding = step.clamp_min_(_SUBNORMAL.get(scale.dtype, 0.0)).mul_(codes)
    return Limit(0.0, _spread(rounding.add_(scale.float() * (0.5 + SLACK)), quantization, shape))


def biased_integers(scale: Tensor, quantization: Quantization, shape: Shape) -> Limit:
    """Of integers with a scale and a bias: scale, product and sum are each rounded to the dtype of the scale."""
    rounding = 3 * (2**quantization.bits - 1) * _STEP[scale.dtype]
    return Limit(0.0, _spread(scale.float().abs() * (1.0 + rounding + SLACK), quantization, shape))


def e4m3(scale: Tensor, quantization: Quantization, shape: Shape) -> Limit:
    """Of FP8: three bits of mantissa, so 1/16 of the number; below 2^-6 steps of 2^-9."""
    least = _spread(scale.float() * (2.0**-10 * (1 + SLACK)), quantization, shape)
    return Limit((1 + SLACK) / 16, least)


def e2m1(scale: Tensor, unit: Tensor, quantization: Quantization, shape: Shape) -> Limit:
    """Of FP4 under E4M3 block scales. `unit`: float32 value of a block scale of 1."""
    return Limit(0.0, _spread(scale.float().clamp_min(_TINY_BLOCK) * (unit * (1 + SLACK)), quantization, shape))


def mxfp4(factors: Tensor, quantization: Quantization, shape: Shape) -> Limit:
    """Of FP4 under powers of two; `factors`: float32, what each is."""
    return Limit(0.0, _spread(factors * (1 + SLACK), quantization, shape))


def _spread(scale: Tensor, quantization: Quantization, shape: Shape) -> Tensor:
    """Scales of groups, channels, blocks or the tensor as [rows or 1, groups]; cut blocks as [rows, in]."""
    rows, columns = shape
    if quantization.strategy == "block" and quantization.block:
        tall, wide = quantization.block
        scale = scale.reshape(-(-rows // tall), -(-columns // wide)).repeat_interleave(tall, 0)[:rows]
        return scale if columns % wide == 0 else scale.repeat_interleave(wide, 1)[:, :columns]
    if quantization.strategy == "tensor":
        return scale.reshape(1, 1)
    return scale.reshape(rows, -1)
