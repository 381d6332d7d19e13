"""FP4 E2M1, and the scales of NVFP4: blocks of 16 columns, an E4M3 scale for each, one F32 scale for the matrix.

    byte j of a row = column 2j in the low nibble, 2j+1 in the high one; nibble = sign, 2 bits exponent, 1 bit mantissa
    magnitudes of codes 0..7: 0 .5 1 1.5 2 3 4 6

    compressed-tensors:  value = e2m1 * (float32(scale) / global_scale)      global_scale = 448 * 6 / amax
    ModelOpt:            value = e2m1 * (float32(scale) * scale_2)           scale_2      = amax / (6 * 448)

The two libraries round differently on the way (0.14 % of the scales differ on random weights), so each has functions of
its own; codes and thresholds are the same: ties go to the even mantissa, a negative that rounds to zero keeps its sign,
-0.0 does not. Equal to compressed-tensors 0.20.0 fed float32 and to nvidia-modelopt 0.47.0 NVFP4QTensor.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor

from mtpforge.arithmetic import float8, scales

BLOCK: Final = 16
MAX: Final = 6.0
_RANGE: Final = MAX * float8.MAX  # of code times block scale: 2688
_LEAST_SCALE: Final = 2.0**-9  # of E4M3; ModelOpt lifts smaller block scales to it
_USUAL: Final = (2.0**-100, 2.0**100)


def global_scale(amax: Tensor) -> Tensor:
    """compressed-tensors' global scale for a largest magnitude, float32 [1]; 1.0 where there is none to speak of.

    Its `2688 / amax` is torch's `amax.reciprocal() * 2688`, two roundings (quantization/utils/helpers.py,
    generate_gparam).
    """
    held = amax.to(torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.nan_to_num(held.reciprocal() * _RANGE, nan=1.0, posinf=1.0).reshape(1)


def scale_2(amax: Tensor) -> Tensor:
    """ModelOpt's second scale for a largest magnitude, float32 [].

    ModelOpt itself writes 0 for an all-zero matrix, which decodes to NaN; here that is the scale of amax 1.
    """
    scale = scales.over(amax.to(torch.float32).reshape(()), _RANGE)
    return scale.masked_fill_(scale == 0, 1 / _RANGE)


def is_usual(scale: float) -> bool:
    """Whether a scale of the whole matrix is far from the ends of float32.

    Outside a factor may be subnormal and a quotient Inf or NaN, which compiled loops do not expect.
    """
    return _USUAL[0] <= scale <= _USUAL[1]


def block_scales(weight: Tensor, global_scale: Tensor) -> Tensor:
    """compressed-tensors' block scales, float32 holding E4M3 values [rows, columns / 16]; 0.125 instead of 0."""
    amax = scales.group_largest(torch.unflatten(weight, -1, (-1, BLOCK)))
    return scales.as_stored(global_scale * scales.over(amax, MAX), torch.float8_e4m3fn)


def block_scales_modelopt(weight: Tensor, scale_2: Tensor) -> Tensor:
    """ModelOpt's block scales, float32 holding E4M3 values [rows, columns / 16]; 1.0 for a block of zeros."""
    scale = scales.group_largest(torch.unflatten(weight, -1, (-1, BLOCK))) / (MAX * scale_2)
    scale.masked_fill_(scale == 0, 1.0).clamp_(_LEAST_SCALE, float8.MAX)
    return scale.to(torch.float8_e4m3fn).to(torch.float32)


def encode(weight: Tensor, factors: Tensor, *, signed_zero: bool = True) -> Tensor:
    """Packed codes, uint8 [rows, columns / 2], of float32 `weight` under `factors` float32 [rows, columns / block].

    signed_zero: whether a negative that rounds to zero keeps its sign.
    """
    quotient = (torch.unflatten(weight, -1, (factors.shape[-1], -1)) / factors.unsqueeze(-1)).flatten(-2)
    codes = _nearest(quotient.abs())
    negative = quotient < 0 if signed_zero else (quotient < 0) & (codes > 0)
    codes += negative.to(torch.uint8) << 3
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def _nearest(magnitude: Tensor) -> Tensor:
    """Codes 0..7, uint8, of float32 magnitudes (overwritten): |x| <= .25 is 0, < .75 .5, <= 1.25 1, < 1.75 1.5, ...

    E2M1 steps by 1/2 up to 2, by 1 up to 4, by 2 up to 6. The nearest code under each step, ties to even, and the least
    of the three is the nearest of all: a larger step only overstates below its range, a smaller one above.
    """
    codes = (magnitude * 2).round_()
    torch.minimum(codes, magnitude.round().add_(2), out=codes)
    torch.minimum(codes, magnitude.mul_(0.5).round_().add_(4), out=codes)
    return codes.clamp_(max=7).to(torch.uint8)


def decode(packed: Tensor, factors: Tensor, *, signed_zero: bool) -> Tensor:
    """Values, float32 [rows, columns], of uint8 [rows, columns / 2] under `factors` float32 [rows, columns / block].

    signed_zero: whether nibble 8 is -0.0, as for compressed-tensors, or 0.0, as for ModelOpt.
    """
    pairs = packed.reshape(-1).to(torch.int32)
    values = torch.index_select(_pair_table(signed_zero, packed.device), 0, pairs).view(*factors.shape, -1)
    return values.mul_(factors.unsqueeze(-1)).flatten(-2)


@cache
def _pair_table(signed_zero: bool, device: torch.device) -> Tensor:
    """[256, 2]: the two numbers of every byte, low nibble first.

    Made on the CPU and copied while the caller waits: streams of other threads find it whole.
    """
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    negative = -magnitudes if signed_zero else 0.0 - magnitudes
    numbers = torch.cat([magnitudes, negative])
    every = torch.arange(256)
    return torch.stack([numbers[every & 15], numbers[every >> 4]], dim=1).to(device)
