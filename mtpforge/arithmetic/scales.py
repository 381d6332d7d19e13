"""What all codecs need of a scale: the largest magnitude below it, and the value that it has once it is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from mtpforge.errors import MtpforgeError
from mtpforge.tensors import DTYPES


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype that safetensors calls `name`."""
    dtype = getattr(torch, DTYPES[name].torch)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"torch has no dtype {name}")
    return dtype


def largest(weight: Tensor) -> Tensor:
    """Largest magnitude, float32 scalar. NaN or Inf anywhere is an error: no format stores them without harm.

    One pass without temporary memory. compressed-tensors 0.20.0 would encode a NaN silently: NVFP4 then loses its
    global scale, integer groups decode to NaN.
    """
    if not weight.numel():
        return torch.zeros((), dtype=torch.float32)
    low, high = torch.aminmax(weight)
    amax = torch.maximum(-low, high).to(torch.float32)
    if not torch.isfinite(amax):
        raise MtpforgeError(
            "a weight is NaN or Inf",
            why="no quantized format can hold it: a whole group, row or matrix would be lost",
            fix="use another source: `--source ORG/NAME`",
        )
    return amax


def group_largest(weight: Tensor) -> Tensor:
    """Largest magnitude along the last axis, float32, without a temporary of the weight's size."""
    return torch.maximum(weight.amax(-1), weight.amin(-1).neg_())


def over(values: Tensor, divisor: float) -> Tensor:
    """`values / divisor`, correctly rounded on every device; float32 `values`.

    Divided by a Python number, CUDA multiplies by its reciprocal, which may be one bit off (torch 2.13.0,
    aten/src/ATen/native/cuda/BinaryDivTrueKernel.cu). Divided by a tensor of its own it divides.
    """
    return values / torch.full((), divisor, dtype=values.dtype, device=values.device)


def as_stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The float32 values that `scale` has after being stored as `dtype`, zeros replaced by the dtype's eps.

    So no stored scale is 0: BF16 gets 2^-7, F32 2^-23, F8_E4M3 0.125. The rule of compressed-tensors 0.20.0,
    quantization/utils/helpers.py, calculate_qparams, steps 3 and 5.
    """
    limits = torch.finfo(dtype)
    stored = scale.clamp(limits.min, limits.max).to(dtype).to(torch.float32)
    return stored.masked_fill_(stored == 0, limits.eps)
