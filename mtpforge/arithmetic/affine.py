"""Integers with a scale and a zero point.

    value = (code - zero_point) * scale        code, zero_point: -2^(b-1) .. 2^(b-1)-1; symmetric: zero_point = 0

Here codes and zero points are unsigned, 2^(b-1) added, as they are packed; the offsets cancel. Equal byte for byte to
compressed-tensors 0.20.0 fed float32 with `scale_dtype` set (calculate_qparams, then quantize): the scale is rounded to
its stored dtype before the codes are made, so the codes fit the scale that a reader finds, and the zero point comes
from the scale before that rounding. Fed BF16, or without `scale_dtype`, the library writes other codes with larger
errors (8 bit asymmetric: 1.5 scales instead of 0.9).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtpforge.arithmetic import scales


def qparams(weight: Tensor, bits: int, dtype: torch.dtype, *, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of every group: float32 holding values of `dtype`, and uint8 (None when symmetric).

    weight: float32 [rows, groups, size]; both results [rows, groups]. Zero is always representable.
    """
    exact, zero_point = full_range(weight, bits, symmetric=symmetric)
    return scales.as_stored(exact, dtype), zero_point


def full_range(weight: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Scale that spans a group from its least to its largest number, not yet rounded, and zero point, as `qparams`.

    Divisors: 2^(b-1) - 0.5 for the largest magnitude, 2^b - 1 for the range.
    """
    if symmetric:
        # half of the 2^b - 1 steps between the outermost codes, as calculate_qparams has it: the largest magnitude lies
        # half a step beyond the last positive code, and is clamped to it
        return scales.over(scales.group_largest(weight), 2 ** (bits - 1) - 0.5), None
    # the range takes zero in, so that the zero point is one of the codes and a weight of zero stays zero
    low, high = weight.amin(-1).clamp_(max=0), weight.amax(-1).clamp_(min=0)
    exact = scales.over(high - low, 2**bits - 1)
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    # a group of zeros divides 0 by 0; the library casts that NaN to int8, which is 0
    zero_point = (least - low / exact).clamp_(least, most).nan_to_num_(nan=0.0).round_()
    return exact, zero_point.add_(-least).to(torch.uint8)


def quantize(weight: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int) -> Tensor:
    """Codes, uint8 [rows, groups, size]: divide, add the zero point, clamp, round half to even, in this order.

    weight: float32 [rows, groups, size]; scale float32 and zero_point uint8 [rows, groups].
    """
    offset = 2 ** (bits - 1)
    codes = weight / scale.unsqueeze(-1)
    if zero_point is not None:
        codes += (zero_point.to(torch.float32) - offset).unsqueeze(-1)
    return codes.clamp_(-offset, offset - 1).round_().add_(offset).to(torch.uint8)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int) -> Tensor:
    """Values, float32 [rows, groups, size]: integers subtract exactly, then one product.

    codes: uint8 [rows, groups, size]; scale any float, zero_point uint8, both [rows, groups].
    """
    values = codes.to(torch.float32)
    values -= 2 ** (bits - 1) if zero_point is None else zero_point.to(torch.float32).unsqueeze(-1)
    return values.mul_(scale.to(torch.float32).unsqueeze(-1))


def dequantize_biased(codes: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Values code * scale + bias, float32 [rows, groups, size]: product and sum are each rounded to the scale's dtype.

    codes: uint8 [rows, groups, size]; scale and bias, of one dtype, [rows, groups].
    """
    product = codes.to(torch.float32).mul_(scale.to(torch.float32).unsqueeze(-1))
    total = product.to(scale.dtype).to(torch.float32).add_(bias.to(torch.float32).unsqueeze(-1))
    return total.to(scale.dtype).to(torch.float32)


def of_columns(numbers: Tensor, group: Tensor) -> Tensor:
    """Every column's own of numbers [rows, groups], as [rows, in]; group: int32 [in], the group of each column.

    Scales of a group that is not there are NaN, which no encoder takes: nothing here may wait for a device's answer.
    """
    last = numbers.shape[1] - 1
    of_each = numbers[:, group.clamp(0, last).long()]
    return of_each.masked_fill_((group < 0) | (group > last), float("nan")) if numbers.is_floating_point() else of_each
