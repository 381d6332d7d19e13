"""The quantization block of a config in all its spellings, read into one record.

    parse(block) -> QuantConfig      what the block says; nothing is matched against module names here
    quantization_of(group, stored_as)  how compressed-tensors stores a weight of a group
    fp8_quantization(config)         the same for method `fp8`
    modelopt_quantization(algo)      the same for one algorithm of ModelOpt

A list of names means what its method says: exact or `re:` (compressed-tensors), exact (fp8), `*` wildcards and
substrings (modelopt), substrings (awq). That is the engine's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mtpforge.checkpoint import config_groups
from mtpforge.checkpoint.config_groups import NVFP4_GROUP, Args, Group, quantization_of
from mtpforge.checkpoint.json_fields import Fields
from mtpforge.errors import shown
from mtpforge.tensors import Quantization

__all__ = [
    "Args", "Group", "Layer", "QuantConfig", "fp8_quantization", "modelopt_quantization", "parse", "quantization_of",
]  # fmt: skip
_ALIASES: Final = {
    "auto_awq": "awq",
    "auto_gptq": "gptq",
    "awq_marlin": "awq",
    "compressed_tensors": "compressed-tensors",
    "gptq_marlin": "gptq",
    "inc": "auto-round",
    "modelopt_fp4": "modelopt",
    "modelopt_mixed": "modelopt",
    "modelopt_mxfp8": "modelopt",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One module of ModelOpt's mixed precision."""

    quant_algo: str
    group_size: int | None = None


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """A quantization block.

    method: normalised `quant_method`, "" where none is named. ignore: modules left dense, from whichever key the
    method uses, in its dialect. format, groups: compressed-tensors. block, activation_scheme: fp8. quant_algo (upper
    case), group_size, quantized_layers (module -> Layer, mixed precision): modelopt. raw: everything else.
    """

    method: str = ""
    ignore: tuple[str, ...] = ()
    format: str = ""
    groups: tuple[Group, ...] = ()
    block: tuple[int, int] | None = None
    activation_scheme: str = ""
    quant_algo: str = ""
    group_size: int | None = None
    quantized_layers: Mapping[str, Layer] = field(default_factory=dict, hash=False)
    raw: Mapping[str, object] = field(default_factory=dict, hash=False, repr=False)


def parse(block: Mapping[str, object]) -> QuantConfig:
    """What a quantization block says. A value of a wrong type is an error that names the key's path."""
    if not block:
        return QuantConfig()
    whole = Fields(block, "quantization_config")
    method = _method(whole)
    match method:
        case "":
            return QuantConfig(raw=block)
        case "compressed-tensors":
            return _compressed_tensors(whole)
        case "fp8":
            return _fp8(whole)
        case "modelopt":
            return _modelopt(whole)
    return QuantConfig(
        method,
        next((whole.texts(key) for key in ("ignored_layers", "modules_to_not_convert", "exclude") if key in whole), ()),
        raw=block,
    )


def _method(whole: Fields) -> str:
    """The method by name; "" where the block names none, which engines take for no quantization at all."""
    if named := whole.text("quant_method").lower():
        return _ALIASES.get(named, named)
    producer = whole.within("producer")
    if producer is not None and producer.text("name") == "modelopt":
        return "modelopt"
    return "mlx" if {"bits", "group_size"} <= whole.values.keys() else ""


def _compressed_tensors(whole: Fields) -> QuantConfig:
    listed = whole.within("config_groups")
    return QuantConfig(
        "compressed-tensors",
        whole.texts("ignore"),
        format=whole.text("format"),
        groups=tuple(config_groups.read(name, group) for name, group in listed.objects()) if listed else (),
        raw=whole.values,
    )


def _fp8(whole: Fields) -> QuantConfig:
    # vLLM reads `ignored_layers` first, and `modules_to_not_convert` where that is absent or empty (fp8.py, 0.33.0).
    return QuantConfig(
        "fp8",
        whole.texts("ignored_layers") or whole.texts("modules_to_not_convert"),
        block=whole.pair("weight_block_size"),
        activation_scheme=whole.text("activation_scheme"),
        raw=whole.values,
    )


def _modelopt(whole: Fields) -> QuantConfig:
    # hf_quant_config.json nests the same facts under `quantization`, with other names, and has no `ignore` there
    # (vLLM quantization/modelopt.py, ModelOptQuantConfigBase.from_config, 0.33.0).
    inner = whole.within("quantization") or whole
    layers = inner.within("quantized_layers")
    return QuantConfig(
        "modelopt",
        inner.texts("ignore" if inner is whole and "ignore" in inner else "exclude_modules"),
        quant_algo=inner.text("quant_algo").upper(),
        group_size=inner.whole("group_size") or _modelopt_group_size(inner),
        quantized_layers={
            name: Layer(layer.text("quant_algo").upper(), layer.whole("group_size")) for name, layer in layers.objects()
        }
        if layers
        else {},
        raw=whole.values,
    )


def _modelopt_group_size(inner: Fields) -> int | None:
    """From `config_groups`: ModelOpt writes a compressed-tensors look-alike beside its own keys."""
    groups = inner.within("config_groups")
    sizes = {w.whole("group_size") for _, g in groups.objects() if (w := g.within("weights"))} if groups else set()
    return sizes.pop() if len(sizes) == 1 else None


def fp8_quantization(config: QuantConfig) -> Quantization:
    """How method `fp8` stores a weight: F32 scales a block (`weight_scale_inv`), or one a tensor without blocks."""
    static = config.activation_scheme == "static"
    if config.block is None:
        return Quantization(
            "fp8_scaled", 8, strategy="tensor", scale_dtype="F32", input_scale="static" if static else "dynamic"
        )
    if static:
        raise config_groups.unsupported("quantization_config", "static activations with weight blocks are not written")
    return Quantization("fp8_block", 8, strategy="block", block=config.block, scale_dtype="F32", input_scale="dynamic")


def modelopt_quantization(quant_algo: str, group_size: int | None = None) -> Quantization:
    """How ModelOpt stores a weight under an algorithm: `NVFP4`, `W4A16_NVFP4`, `MXFP8`, of FP8 three; else an error."""
    match quant_algo.upper():
        case "NVFP4" | "W4A16_NVFP4" as algo if group_size in (None, NVFP4_GROUP):
            return config_groups.nvfp4("modelopt_nvfp4", "static" if algo == "NVFP4" else "none")
        case "MXFP8":  # the group size of a block is NVFP4's
            return config_groups.microscaled("mxfp8", 8, "dynamic")
        case "FP8_PER_CHANNEL_PER_TOKEN":
            return Quantization("modelopt_fp8", 8, strategy="channel", scale_dtype="F32", input_scale="dynamic")
        case "FP8_PB_WO":
            return Quantization(
                "modelopt_fp8", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic"
            )
        case "FP8":
            return Quantization("fp8_scaled", 8, strategy="tensor", scale_dtype="F32", input_scale="static")
    sized = "" if group_size is None else f" with groups of {group_size}"
    raise config_groups.unsupported(
        "quant_algo", f"ModelOpt's {shown(quant_algo) or 'empty algorithm'}{sized} is not written"
    )
