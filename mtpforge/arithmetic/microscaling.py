"""One power of two for 32 columns (OCP Microscaling 1.0), stored as its exponent in a byte: E8M0.

    factor = 2 ^ (byte - 127)        0 is 2^-127, 255 is no number: Inf here, as for compressed-tensors

The exponent is that of the largest magnitude once its mantissa is rounded to one bit, less the exponent of the largest
code: 2 for E2M1 (6), 8 for E4M3 (448). So up to 7/8 of a binade is clipped, less than one step of E2M1.
Equal to compressed-tensors 0.20.0 fed float32 (quantization/utils/mxfp_utils.py, generate_mx_scales) and, of E2M1, to
amd-quark 0.13 ("even"), which rounds E4M3's to three bits: a fifth of the blocks get half the factor and are cut off.
ModelOpt's rule is ceil(log2(amax / 6)), another for a quarter of the blocks.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from mtpforge.arithmetic import float8, scales

GROUP: Final = 32
E2M1: Final = 2  # exponent of the largest code
E4M3: Final = 8
_MANTISSA: Final = 23  # bits of float32's
_HALF: Final = 1 << (_MANTISSA - 2)  # half of the one bit of mantissa that is kept
_LARGEST: Final = 254
_TINY: Final = 1 << (_MANTISSA - 1)  # 2^-127 as float32, a subnormal


def factors(exponents: Tensor) -> Tensor:
    """Powers of two, float32, of E8M0 bytes (uint8 or float8_e8m0fnu) of the same shape."""
    bits = exponents.view(torch.uint8).to(torch.int32) << _MANTISSA
    return bits.masked_fill_(bits == 0, _TINY).view(torch.float32)


def exponents(weight: Tensor, largest: int) -> Tensor:
    """E8M0 bytes, uint8 [rows, columns / 32], of float32 [rows, columns]; `largest` is E2M1 or E4M3."""
    amax = scales.group_largest(torch.unflatten(weight, -1, (-1, GROUP)))
    rounded = (amax.view(torch.int32) + _HALF) >> _MANTISSA
    return (rounded - largest).clamp_(0, _LARGEST).to(torch.uint8)


def encode_e4m3(weight: Tensor, exponents: Tensor) -> Tensor:
    """Codes, float8_e4m3fn [rows, columns], of float32 `weight` under E8M0 bytes [rows, columns / 32]."""
    return float8.encode(torch.unflatten(weight, -1, (-1, GROUP)), factors(exponents).unsqueeze(-1)).flatten(-2)


def decode_e4m3(codes: Tensor, exponents: Tensor) -> Tensor:
    """Values, float32 [rows, columns], of E4M3 codes under E8M0 bytes [rows, columns / 32]."""
    values = torch.unflatten(float8.to_float32(codes), -1, (-1, GROUP))
    return values.mul_(factors(exponents).unsqueeze(-1)).flatten(-2)
