"""Codes of a weight as other tools make them, by their own libraries, in the dtype of their models: BF16.

from other_makers import int4, nvfp4, modelopt_nvfp4
"""

from __future__ import annotations

import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

Parts = dict[str, torch.Tensor]


def int4(weight: torch.Tensor, observer: str, *, size: int = 32, symmetric: bool = False) -> Parts:
    """compressed-tensors' pack-quantized INT4 of a BF16 weight, scales by an observer of llm-compressor."""
    args = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=size)
    return compressed("pack-quantized", weight, observer, args, None)


def nvfp4(weight: torch.Tensor, observer: str, global_scale: torch.Tensor) -> Parts:
    """compressed-tensors' NVFP4 of a BF16 weight; global_scale: float32 [1]."""
    args = QuantizationArgs(num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16)
    args.scale_dtype, args.zp_dtype = torch.float8_e4m3fn, torch.float8_e4m3fn
    return compressed("nvfp4-pack-quantized", weight, observer, args, global_scale)


def compressed(name, weight, observer, args, global_scale):
    scale, zero = {"minmax": minmax, "mse": mse}[observer](weight, args, global_scale)
    state = {"weight": weight.clone(), "weight_scale": scale, "weight_zero_point": zero}
    if global_scale is not None:
        state["weight_global_scale"] = global_scale
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    return BaseCompressor.get_value_from_registry(name).compress(state, scheme)


def minmax(weight, args, global_scale):
    groups = weight.unflatten(-1, (-1, args.group_size))
    return calculate_qparams(groups.amin(-1), groups.amax(-1), args, global_scale=global_scale)


def mse(weight, args, global_scale, norm=2.4, max_shrink=0.2, grid=100, patience=5):
    """llm-compressor 0.14.0.1, observers/mse.py: |error|^2.4, ends after 5 ranges without any gain."""
    groups = weight.unflatten(-1, (-1, args.group_size))
    low, high = groups.amin(-1), groups.amax(-1)
    best, low_best, high_best, idle = torch.full_like(low, torch.finfo(low.dtype).max), low.clone(), high.clone(), 0
    for step in range(int(max_shrink * grid)):
        shrink = 1 - step / grid
        scale, zero = calculate_qparams(low * shrink, high * shrink, args, global_scale=global_scale)
        rounded = fake_quantize(weight, scale, zero, args, global_scale=global_scale)
        error = (rounded - weight).abs().pow(norm).unflatten(-1, (-1, args.group_size)).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        low_best, high_best = (
            torch.where(better, end * shrink, old) for end, old in ((low, low_best), (high, high_best))
        )
        idle = 0 if bool(better.any()) else idle + 1
        if idle >= patience:
            break
    return calculate_qparams(low_best, high_best, args, global_scale=global_scale)


def modelopt_nvfp4(weight: torch.Tensor, scale_2: torch.Tensor) -> Parts:
    """ModelOpt's NVFP4 of a BF16 weight; scale_2: float32 []."""
    made, scale, second = NVFP4QTensor.quantize(weight, 16, weights_scaling_factor_2=scale_2)
    return {"weight": made._quantized_data, "weight_scale": scale, "weight_scale_2": second}
