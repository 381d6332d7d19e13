"""What a draft's tensors say, by plain arithmetic, and how far they may lie from what was encoded.

A reader takes the parts of one module and the values that were encoded, float32 [out, in], and gives the values that
the parts decode to and the bound: half a step of the codes, what the scale loses in its dtype, three bits of mantissa.
"""

from __future__ import annotations

import torch
from slow_twins import layouts, packers

BF16, F16 = 2.0**-8, 2.0**-11  # what a scale loses in these dtypes


def dense(parts, encoded):
    return parts["weight"].float(), encoded.abs() * 2.0**-8


def packed(parts, _encoded):
    """Half a step, and all steps of the range by as much as the BF16 scale is off; half the range where symmetric."""
    bits = parts["weight_packed"].shape[1] * 32 // int(parts["weight_shape"][1])
    scale = parts["weight_scale"].float()
    range_ = (2**bits - 1) / (1 if "weight_zero_point" in parts else 2)
    return layouts.integers(parts), spread(scale * (0.5 + range_ * BF16), _encoded)


def by_inputs(kind):
    def read(parts, encoded):
        codes, zeros = packers.unpacked(parts, 4, kind)
        scale = parts["scales"].float().t()
        values = (codes - spread(zeros, encoded)) * spread(scale, encoded)
        return values, spread(scale * (0.5 + 16 * F16), encoded)

    return read


def w4afp8(parts, encoded):
    codes = parts["weight"].view(torch.uint8)
    unsigned = torch.stack((codes & 15, codes >> 4), -1).flatten(1).long()
    scale = parts["weight_scale_inv"].float()
    values = (unsigned - 16 * (unsigned > 7)) * spread(scale, encoded)
    return values, spread(scale * (0.5 + 7.5 * BF16), encoded)


def fp8_block(parts, encoded):
    rows, columns = encoded.shape
    step = parts["weight_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
    return layouts.decoded(parts), (encoded.abs() / 16).maximum(step * 2.0**-10)


def nvfp4(parts, encoded):
    return layouts.decoded(parts), spread(parts["weight_scale"].float() * parts["weight_scale_2"], encoded)


def mxfp4(parts, encoded):
    return layouts.decoded(parts), spread(2.0 ** (parts["weight_scale"].float() - 127), encoded)


def mxfp8(parts, encoded):
    step = spread(2.0 ** (parts["weight_scale"].float() - 127), encoded)
    return layouts.decoded(parts), (encoded.abs() / 16).maximum(step * 2.0**-10)


def spread(of_groups, weight):
    return of_groups.repeat_interleave(weight.shape[1] // of_groups.shape[1], 1)


READERS = {
    "dense": dense,
    "pack_quantized": packed,
    "awq": by_inputs("awq"),
    "gptq": by_inputs("gptq"),
    "w4afp8": w4afp8,
    "fp8_block": fp8_block,
    "modelopt_nvfp4": nvfp4,
    "mxfp4": mxfp4,
    "mxfp8": mxfp8,
}
