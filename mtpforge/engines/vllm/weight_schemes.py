"""Which weights of a compressed-tensors group vLLM can build, and in which of the library's formats it stores them.

linear(weights, activations)    as CompressedTensorsConfig._get_scheme_from_parts picks a class for a matrix
experts(weights, activations)   as CompressedTensorsMoEMethod.get_moe_method does for the routed experts

Both answer with a format of compressed-tensors, or raise RefusalError with vLLM's rule. The order of the questions is
vLLM's: the first that fits decides, and NVFP4, MXFP and W4A8-FP8 are told by their numbers, whatever `format` says.
Taken as on Hopper, where FP8 activations beside INT4 have kernels, with every package that vLLM's wheel requires
(humming-kernels has kernels for integers of any width).
Source: vllm quantization/compressed_tensors/compressed_tensors.py:443-880, compressed_tensors_moe/ (0.33.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mtpforge.checkpoint.quantization import Args

PACKED: Final = "pack-quantized"
# is_activation_quantization_format, compressed_tensors/utils.py:43
OF_ACTIVATIONS: Final = ("naive-quantized", "int-quantized", "float-quantized", "nvfp4-pack-quantized")
_BITS: Final = range(2, 9)  # WNA16_SUPPORTED_BITS
_W4A8_GROUP: Final = 128
_W4A8_EXPERT_COLUMNS: Final = 256  # compressed_tensors_moe_w4a8_fp8.py:67, CUTLASS's reorder_tensor


class RefusalError(Exception):
    """vLLM's rule that weights and activations break."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One group as vLLM reads it: weights, activations, outputs (None: not quantized), and the format in force.

    columns: of the matrices that it is for.
    """

    weights: Args
    inputs: Args | None
    outputs: Args | None
    format: str
    columns: tuple[int, ...] = ()


def linear(stored: Stored) -> str:
    """The format in which vLLM reads a matrix that is no expert's."""
    weights, inputs = stored.weights, stored.inputs
    if by_numbers := _by_numbers(weights, inputs):
        return by_numbers
    if _is_w4a8_fp8(weights, inputs):
        return _w4a8_fp8(weights)
    in_groups = weights.strategy in ("channel", "group")
    if in_groups and stored.format == PACKED and (inputs is None or _is_dynamic_int(weights, inputs)):
        if weights.bits not in _BITS:
            raise RefusalError(f"packed weights have 2 to 8 bits, not {weights.bits}")
        return PACKED
    if _is_static_int8(inputs) and _is_static_int8(stored.outputs) and in_groups and weights.type == "int":
        return "weights between quantized inputs and outputs"
    if stored.format in OF_ACTIVATIONS and (unpacked := _unpacked(weights, inputs)):
        return unpacked
    raise RefusalError(f"`No compressed-tensors compatible scheme was found` for format {stored.format or 'null'}")


def _unpacked(weights: Args, inputs: Args | None) -> str:
    """The format of a matrix whose codes are stored one by one, "" where there is no class for it."""
    if _is_float(weights):
        if weights.strategy == "block" and inputs is not None and inputs.dynamic == "no" and _is_fp8(weights, inputs):
            raise RefusalError("FP8 blocks take dynamic activations alone")
        return "float-quantized"
    if inputs is None:
        return ""
    if _is_int8(weights, inputs, ("token", "tensor")):
        return "int-quantized"
    is_w4a8 = _is_dynamic_int(weights, inputs) and inputs.strategy == "token" and (weights.bits, inputs.bits) == (4, 8)
    return "unpacked INT4" if is_w4a8 and weights.symmetric and weights.strategy in ("channel", "group") else ""


def experts(stored: Stored) -> str:
    """The format in which vLLM reads the routed experts."""
    weights, inputs = stored.weights, stored.inputs
    if weights.strategy in ("channel", "group") and inputs is None and not _microscaled(weights):
        return _packed_experts(weights, stored.format)
    if by_numbers := _by_numbers(weights, inputs):
        return by_numbers
    if inputs is not None and _is_fp8(weights, inputs):
        return _fp8_experts(weights, inputs)
    if inputs is not None and _is_int8(weights, inputs, ("token",)):
        if weights.strategy != "channel":
            raise RefusalError("INT8 experts need one scale a channel, with activations quantized per token")
        return "int-quantized"
    if _is_w4a8_fp8(weights, inputs):
        if cut := next((n for n in stored.columns if n % _W4A8_EXPERT_COLUMNS), None):
            raise RefusalError(f"W4A8 experts need multiples of {_W4A8_EXPERT_COLUMNS} columns, not {cut}")
        return _w4a8_fp8(weights)
    raise RefusalError("`Unsupported FusedMoe scheme`: no kernel for experts takes such weights and activations")


def _packed_experts(weights: Args, format_name: str) -> str:
    # Line 111 of compressed_tensors_moe.py, 127 of compressed_tensors_moe_wna16.py, 361 of oracle/int_wna16.py
    if format_name != PACKED or weights.bits not in _BITS:
        raise RefusalError(f"experts with activations as they are must be {PACKED}, with 2 to 8 bits")
    if weights.bits == 8 and not weights.symmetric:  # noqa: PLR2004
        raise RefusalError("`No WNA16 MoE backend supports` experts of 8 bits with zero points")
    if weights.bits not in (4, 8) and weights.strategy == "channel":
        raise RefusalError(f"experts of {weights.bits} bits need groups, not one scale a channel")
    return PACKED


def _fp8_experts(weights: Args, inputs: Args) -> str:
    # compressed_tensors_moe_w8a8_fp8.py, line 63
    pair = weights.strategy, inputs.strategy
    if pair not in (("tensor", "tensor"), ("channel", "token")) and weights.strategy != "block":
        raise RefusalError(
            "FP8 experts take one scale a tensor for weights and activations, or one a channel and a token, or blocks;"
            f" not {pair[0]} and {pair[1]}"
        )
    if pair == ("channel", "token") and inputs.dynamic == "no":
        raise RefusalError("FP8 experts with one scale a channel need dynamic activations")
    return "float-quantized"


def _by_numbers(weights: Args, inputs: Args | None) -> str:
    """NVFP4 and MXFP, "" for anything else."""
    if _is_nvfp4(weights):
        if inputs is not None and not _is_nvfp4(inputs):
            raise RefusalError("activations beside NVFP4 weights must be NVFP4, or not quantized")
        return "nvfp4-pack-quantized"
    return _microscaled(weights)


def _is_nvfp4(args: Args) -> bool:
    return args.symmetric and (args.type, args.bits, args.strategy, args.group_size) == ("float", 4, "tensor_group", 16)


def _microscaled(weights: Args) -> str:
    if not weights.symmetric or (weights.type, weights.strategy, weights.group_size) != ("float", "group", 32):
        return ""
    is_mxfp8 = weights.bits == 8 and weights.scale_dtype == "U8"  # noqa: PLR2004
    return "mxfp4-pack-quantized" if weights.bits == 4 else "mxfp8-quantized" if is_mxfp8 else ""  # noqa: PLR2004


def _is_w4a8_fp8(weights: Args, inputs: Args | None) -> bool:
    return (
        inputs is not None
        and (weights.type, weights.bits, weights.strategy, weights.dynamic) == ("int", 4, "group", "no")
        and (inputs.type, inputs.bits, inputs.strategy) == ("float", 8, "token")
        and inputs.dynamic != "no"
        and weights.symmetric
        and inputs.symmetric
    )


def _w4a8_fp8(weights: Args) -> str:
    if weights.group_size != _W4A8_GROUP:
        raise RefusalError(f"INT4 beside FP8 activations needs groups of {_W4A8_GROUP}, not {weights.group_size}")
    return PACKED


def _is_dynamic_int(weights: Args, inputs: Args) -> bool:
    return (
        weights.type == inputs.type == "int"
        and inputs.bits in (4, 8)
        and inputs.strategy in ("token", "group")
        and inputs.symmetric
        and inputs.dynamic != "no"
    )


def _is_static_int8(args: Args | None) -> bool:
    return args is not None and (args.type, args.bits, args.strategy, args.dynamic) == ("int", 8, "tensor", "no")


def _is_float(weights: Args) -> bool:
    return weights.type == "float" and weights.symmetric and weights.strategy in ("tensor", "channel", "block")


def _is_fp8(weights: Args, inputs: Args | None) -> bool:
    if inputs is None or inputs.type != "float" or not _is_float(weights):
        return False
    return inputs.dynamic != "no" or (inputs.symmetric and inputs.strategy == "tensor")


def _is_int8(weights: Args, inputs: Args, strategies: tuple[str, ...]) -> bool:
    """Eight bits both, static activations per tensor or dynamic ones per token (the types are not looked at)."""
    fits = (inputs.strategy, inputs.dynamic != "no") in (("tensor", False), ("token", True))
    covered = weights.strategy in ("tensor", "channel") and inputs.strategy in strategies
    return fits and covered and weights.symmetric and weights.bits == inputs.bits == 8  # noqa: PLR2004
