"""What a quantization block says of a Quantization: the way back from `config_groups` and `quantization`.

    is_compressed, is_fp8, is_modelopt   whether a method has words for a set of quantizations
    compressed_format, group             a format of compressed-tensors, one of its `config_groups`
    algorithm, quark                     what ModelOpt names, what Quark configures
    is_awq, is_gptq, is_auto_round       the same for methods of one packing
    integers                             `bits` and what goes with it, of GPTQ and AutoRound

Which names a list or a target holds, and what stands around them, is the engine's business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from mtpforge.tensors import DTYPES, Quantization

_FORMAT_NAMES: Final = {
    "pack_quantized": "pack-quantized",
    "int_quantized": "int-quantized",
    "fp8_scaled": "float-quantized",
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp8": "mxfp8-quantized",
}
_QUARK_DTYPES: Final = {
    "quark_mxfp4": "fp4",
    "fp8_scaled": "fp8_e4m3",
    "modelopt_fp8": "fp8_e4m3",
    "quark_int8": "int8",
    "mxfp8": "fp8_e4m3",
}
_QUARK_INTEGERS: Final = ("quark_int4", "quark_int4_in_order")
_INTEGERS: Final = ("pack_quantized", "int_quantized")


def compressed_format(q: Quantization) -> str:
    """The format as compressed-tensors names it; KeyError where it has none."""
    return _FORMAT_NAMES[q.format]


def group(q: Quantization, targets: Sequence[str]) -> dict[str, object]:
    """One of `config_groups`, for the modules that `targets` name."""
    return {
        "format": _FORMAT_NAMES[q.format],
        "targets": list(targets),
        "weights": _weights(q),
        "input_activations": _activations(q),
        "output_activations": None,
    }


def _weights(q: Quantization) -> dict[str, object]:
    stated: dict[str, object] = {
        "num_bits": q.bits,
        "type": "int" if q.format in _INTEGERS else "float",
        "strategy": "tensor_group" if q.format == "nvfp4" else q.strategy,
        "symmetric": q.symmetric,
        "dynamic": False,
    }
    if q.group_size is not None:
        stated["group_size"] = q.group_size
    if q.block is not None:
        stated["block_structure"] = list(q.block)
    if q.scale_dtype != ("F32" if q.format == "fp8_scaled" else "BF16"):
        stated["scale_dtype"] = f"torch.{DTYPES[q.scale_dtype].torch}"
    return stated


def _activations(q: Quantization) -> dict[str, object] | None:
    if q.input_scale == "none":
        return None
    if q.format == "nvfp4":
        return {**_weights(q), "dynamic": "local"}
    if q.format in ("mxfp4", "mxfp8"):
        return {**_weights(q), "dynamic": True}
    kind = {"num_bits": 8, "type": "float" if q.format == "fp8_scaled" else "int", "symmetric": True}
    if q.input_scale == "static":
        return {**kind, "strategy": "tensor", "dynamic": False}
    if q.block is not None:
        return {**kind, "strategy": "group", "group_size": q.block[1], "dynamic": True}
    return {**kind, "strategy": "token", "dynamic": True}


def algorithm(q: Quantization) -> dict[str, object]:
    """One of ModelOpt's `quantized_layers`: `quant_algo`, and what goes with it."""
    if q.format == "fp8_scaled":
        return {"quant_algo": "FP8"}
    if q.format == "modelopt_fp8":
        return {"quant_algo": "FP8_PB_WO" if q.strategy == "block" else "FP8_PER_CHANNEL_PER_TOKEN"}
    if q.format == "mxfp8":
        return {"quant_algo": "MXFP8", "group_size": q.group_size}
    return {"quant_algo": "NVFP4" if q.input_scale == "static" else "W4A16_NVFP4", "group_size": q.group_size}


def quark(q: Quantization) -> dict[str, object]:
    """Quark's config of weights and activations, in its 0.11's words; KeyError where it has none."""
    dtype = ("int4" if q.symmetric else "uint4") if q.format in _QUARK_INTEGERS else _QUARK_DTYPES[q.format]
    weight: dict[str, object] = {"dtype": dtype, "is_dynamic": False, "symmetric": q.symmetric}
    match q.strategy:
        case "group":
            weight |= {"qscheme": "per_group", "ch_axis": -1, "group_size": q.group_size}
            weight |= {} if q.format in _QUARK_INTEGERS else {"scale_format": "e8m0"}
        case "block":
            weight |= {"qscheme": "per_block", "block_size": list(q.block or ())}
        case "channel":
            weight |= {"qscheme": "per_channel", "ch_axis": 0}
        case _:
            weight |= {"qscheme": "per_tensor"}
    inputs = None if q.input_scale == "none" else _quark_inputs(q, weight)
    return {"weight": weight, "input_tensors": inputs, "output_tensors": None, "bias": None}


def _quark_inputs(q: Quantization, weight: dict[str, object]) -> dict[str, object]:
    """Activations quantized at run time, cut as the weights are; by one stored scale where it is static."""
    if q.input_scale == "static":
        return {"dtype": weight["dtype"], "qscheme": "per_tensor", "symmetric": True, "is_dynamic": False}
    if q.block is not None:
        grouped = {"qscheme": "per_group", "group_size": q.block[1], "ch_axis": -1}
        return {"dtype": weight["dtype"], "symmetric": True, "is_dynamic": True, **grouped}
    return {**weight, "is_dynamic": True} | ({"ch_axis": 1} if q.strategy == "channel" else {})


def quark_packing(kinds: Iterable[Quantization]) -> str:
    """How Quark's block says that eight rows of 4 bits share a word."""
    return "order" if any(q.format == "quark_int4_in_order" for q in kinds) else "reorder"


def is_quark(kinds: Iterable[Quantization]) -> bool:
    """Whether Quark has words for all: FP8, MXFP8 and INT8 beside quantized activations alone, INT4 in one order."""
    kinds = tuple(kinds)
    return len({q.format for q in kinds if q.format in _QUARK_INTEGERS}) <= 1 and all(
        q.format in ("quark_mxfp4", *_QUARK_INTEGERS)
        or (q.format == "mxfp8" and q.input_scale == "dynamic")
        or (
            q.format in _QUARK_DTYPES
            and (q.strategy == "channel") == (q.format != "fp8_scaled")
            and q.input_scale != "none"
            and q.scale_dtype == "F32"
        )
        for q in kinds
    )


def is_compressed(kinds: Iterable[Quantization]) -> bool:
    """Whether compressed-tensors has words for all of them."""
    return all(q.format in _FORMAT_NAMES for q in kinds)


def is_fp8(kinds: Collection[Quantization]) -> bool:
    """Whether method fp8 has: one kind alone, with blocks or with one scale a tensor."""
    return len(kinds) == 1 and all(
        q.format == "fp8_block" or (q.format == "fp8_scaled" and q.strategy == "tensor" and q.input_scale != "none")
        for q in kinds
    )


def is_modelopt(kinds: Iterable[Quantization]) -> bool:
    """Whether ModelOpt has."""
    return all(
        q.format == "modelopt_nvfp4"
        or (q.format in ("mxfp8", "modelopt_fp8") and q.input_scale == "dynamic")
        or (q.format == "fp8_scaled" and q.strategy == "tensor" and q.input_scale == "static")
        for q in kinds
    )


def is_awq(kinds: Collection[Quantization]) -> bool:
    """Whether AWQ has: one kind alone."""
    return len(kinds) == 1 and all(q.format == "awq" for q in kinds)


def is_gptq(kinds: Collection[Quantization]) -> bool:
    """Whether GPTQ has: every weight in one way to store zero points; bits and groups may differ."""
    return len({q.format for q in kinds}) == 1 and all(q.format in ("gptq", "gptq_v2") for q in kinds)


def is_auto_round(kinds: Collection[Quantization]) -> bool:
    """Whether AutoRound has, in what vLLM takes of it: all packed as GPTQ, or all as AWQ."""
    return len({q.format for q in kinds}) == 1 and all(q.format in ("gptq", "awq") for q in kinds)


def integers(q: Quantization) -> dict[str, object]:
    """Bits, groups and symmetry of a weight as GPTQ and AutoRound say them."""
    return {"bits": q.bits, "group_size": -1 if q.group_size is None else q.group_size, "sym": q.symmetric}
