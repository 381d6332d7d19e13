"""vLLM's reading of a Quark block: the list of dense modules, then a config by name, else the one for all.

    MXFP4   groups of 32 under exponents, activations as they are or quantized at run time in another OCP MX format
    MXFP8   the same of E4M3, activations quantized at run time alike; linears take them as they are, too
    FP8     one scale a tensor, a row or a block of 128 x 128
    INT8    one scale a row, activations quantized at run time
    INT4    groups under BF16 scales, activations as they are; `export.pack_method` says how eight rows share a word

`layer_type_quant_config` has to be there and decides nothing: vLLM looks a class up in it, and its keys are names.
Source: vllm quantization/quark/quark.py, quark/utils.py, quark/quark_moe.py, utils/ocp_mx_utils.py (0.33.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch, fnmatchcase
from typing import Final, Literal, TypeAlias

from mtpforge.checkpoint.config_groups import MX_GROUP, microscaled
from mtpforge.checkpoint.quantization import QuantConfig
from mtpforge.engines.expressions import exact_or_regex, quoted
from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.name_matching import below, listed
from mtpforge.engines.vllm.refusals import refused, unmade
from mtpforge.errors import shown
from mtpforge.tensors import BF16, Quantization

Spec: TypeAlias = Mapping[str, object]

_MXFP4: Final = {"dtype": "fp4", "qscheme": "per_group", "group_size": MX_GROUP, "scale_format": "e8m0"}
_MX_INPUTS: Final = ("fp4", "fp6_e3m2", "fp6_e2m3")
_MXFP8: Final = {**_MXFP4, "dtype": "fp8_e4m3"}
_E4M3: Final = "fp8_e4m3"
_BLOCK: Final = (128, 128)
_GROUP_OF_BLOCK: Final = {"qscheme": "per_group", "group_size": 128, "symmetric": True}
# Read, and not written: dtypes of the weights -> their name.
_NAMES: Final = {
    ("int4",): "INT4",
    ("uint4",): "INT4",
    ("fp4", _E4M3): "NVFP4",
    (_E4M3, "int4"): "INT4 beside FP8 activations",
    ("fp6_e3m2",): "MXFP6",
    ("fp6_e2m3",): "MXFP6",
}
_INT4: Final = {"int4": True, "uint4": False}  # -> whether it is symmetric
# `pack_method` -> format. quark_w4a16_int4.py: any other but "reorder" would be read in order, and none is taken so.
_PACKED: Final = {"reorder": "quark_int4", "order": "quark_int4_in_order"}
_GROUPS: Final = (32, 64, 128)  # for which Marlin has kernels
_NO_BLOCK: Final = "vLLM takes no such Quark block"


def decide(block: QuantConfig, asked: Asked) -> tuple[Quantization, str]:
    """How vLLM would build a matrix, and which entry decided. For experts any excluded name below theirs counts."""
    of_cache = _of_cache(block)
    entry = (below(asked, block.ignore) if asked.experts else None) or listed(
        asked, block.ignore, exact_or_regex, "exclude"
    )
    if entry is not None:
        return BF16, f"exclude entry `{quoted(entry)}`"
    if not isinstance(block.raw.get("layer_type_quant_config"), Mapping):
        raise refused(_NO_BLOCK, "layer_type_quant_config", "`'NoneType' object has no attribute 'get'`")
    found = [_config(block, name, of_cache) for name in (asked.parts if asked.is_fused else (asked.name,))]
    (config, key), *others = found
    if any(other != config for other, _ in others):
        raise refused(
            f"the target gives the parts of `{asked.name}` different configs",
            "layer_quant_config",
            "`Found a different quantization configuration`",
            "make their entries alike in the target's config",
        )
    return _quantization(asked, config, _packing(block)), key


def _of_cache(block: QuantConfig) -> tuple[str, ...]:
    """Patterns of entries whose outputs are the KV cache's. What stops QuarkConfig.from_config is refused."""
    export = block.raw.get("export")
    if export is None:
        raise refused(_NO_BLOCK, "export", "`The export key should be included`")
    cached = export.get("kv_cache_group") if isinstance(export, Mapping) else None
    if not isinstance(cached, list):
        raise refused(
            _NO_BLOCK,
            "export.kv_cache_group",
            "`object of type 'NoneType' has no len()`",
            'add `"kv_cache_group": []` to `export` in the target\'s config',
        )
    if "exclude" not in block.raw:
        raise refused(_NO_BLOCK, "exclude", "`'NoneType' object is not iterable`")
    layers = _layers(block)
    patterns = tuple(str(pattern) for pattern in cached)
    if patterns and not any(fnmatchcase(name, pattern) for name in layers for pattern in patterns):
        raise refused(_NO_BLOCK, "export.kv_cache_group", "`no kv_cache quantization settings were found`")
    return patterns


def _layers(block: QuantConfig) -> Mapping[str, object]:
    layers = block.raw.get("layer_quant_config")
    return layers if isinstance(layers, Mapping) else {}


def _config(block: QuantConfig, name: str, of_cache: tuple[str, ...]) -> tuple[object, str]:
    """QuarkConfig.get_layer_quant_config_from_name: an entry without `*` names whatever it contains the name of."""
    for entry, config in _layers(block).items():
        if fnmatch(name, entry) if "*" in entry else name in entry:
            is_cached = any(fnmatchcase(entry, pattern) for pattern in of_cache)
            cut = {"output_tensors": None} if is_cached else {}
            said = {**config, **cut} if isinstance(config, Mapping) else config
            return said, f"layer_quant_config entry `{quoted(entry)}`"
    return block.raw.get("global_quant_config"), "global_quant_config, no exclude entry"


def _packing(block: QuantConfig) -> str:
    export = block.raw.get("export")
    return str(export.get("pack_method")) if isinstance(export, Mapping) else ""


def _quantization(asked: Asked, config: object, packing: str) -> Quantization:
    """In the order in which vLLM asks its schemes; which comes first matters to none."""
    said = config if isinstance(config, Mapping) else {}
    weight, inputs = (_one(said.get(key)) for key in ("weight", "input_tensors"))
    if not said.get("output_tensors") and not said.get("bias") and weight and not weight.get("is_dynamic"):
        for made in (_fp8, _int8, _mxfp8, _mxfp4):
            if quantization := made(asked, weight, inputs):
                return quantization
        if not said.get("input_tensors") and (quantization := _int4(asked, weight, packing)):
            return quantization
    raise unmade(f"`{asked.name}` in {_named(said.get('weight'))}", "global_quant_config")


def _named(weight: object) -> str:
    """What Quark calls weights that no draft is made in."""
    several = weight if isinstance(weight, list) else [weight]
    said = [one for one in several if isinstance(one, Mapping)]
    dtypes = tuple(str(one.get("dtype")) for one in said)
    return f"Quark's {_NAMES.get(dtypes) or 'weights of ' + shown(' and '.join(dtypes) or 'no dtype')}"


def _fp8(asked: Asked, weight: Spec, inputs: Spec) -> Quantization | None:
    """QuarkConfig._is_fp8_w8a8, and of experts what QuarkW8A8Fp8MoEMethod takes."""
    if (weight.get("dtype"), inputs.get("dtype")) != (_E4M3, _E4M3):
        return None
    how, dynamic = weight.get("qscheme"), bool(inputs.get("is_dynamic"))
    if how == "per_block":
        return _fp8_blocks(weight, inputs) if dynamic else None
    if how not in ("per_tensor", "per_channel") or not (dynamic or inputs.get("qscheme") == "per_tensor"):
        return None
    by_token = dynamic and inputs.get("qscheme") == "per_channel"
    if asked.experts and by_token != (how == "per_channel"):
        raise refused(
            f"the target's scheme for `{asked.name}` is none that vLLM can build",
            "global_quant_config",
            "`only per-tensor, per-channel and per-block scales for weights and activations are supported`",
        )
    static: Literal["dynamic", "static"] = "dynamic" if dynamic else "static"
    if how == "per_channel":
        return Quantization("modelopt_fp8", 8, strategy="channel", scale_dtype="F32", input_scale=static)
    return Quantization("fp8_scaled", 8, strategy="tensor", scale_dtype="F32", input_scale=static)


def _fp8_blocks(weight: Spec, inputs: Spec) -> Quantization | None:
    size, is_exponent = weight.get("block_size"), weight.get("scale_type") == "float8_e8m0fnu"
    if size != list(_BLOCK) or weight.get("symmetric") is not True or is_exponent:
        return None
    if any(inputs.get(key) != value for key, value in _GROUP_OF_BLOCK.items()):
        return None
    return Quantization("fp8_scaled", 8, strategy="block", block=_BLOCK, scale_dtype="F32", input_scale="dynamic")


def _int8(_asked: Asked, weight: Spec, inputs: Spec) -> Quantization | None:
    """QuarkConfig._is_w8a8_int8, with activations quantized at run time."""
    told = tuple(spec.get(key) for spec in (weight, inputs) for key in ("dtype", "qscheme"))
    if (
        told != ("int8", "per_channel") * 2
        or weight.get("symmetric") is not True
        or inputs.get("is_dynamic") is not True
    ):
        return None
    return Quantization("quark_int8", 8, strategy="channel", scale_dtype="F32", input_scale="dynamic")


def _mxfp4(_asked: Asked, weight: Spec, inputs: Spec) -> Quantization | None:
    is_known = not inputs or (inputs.get("is_dynamic") is True and inputs.get("dtype") in _MX_INPUTS)
    if not is_known or not _has(weight, _MXFP4):
        return None
    return microscaled("quark_mxfp4", 4, "dynamic" if inputs else "none")


def _int4(asked: Asked, weight: Spec, packing: str) -> Quantization | None:
    """QuarkW4A16Int4 of linears, QuarkW4A16Int4MoEMethod of experts. `symmetric` decides there, whatever the dtype."""
    form, symmetric = _PACKED.get(packing), _INT4.get(str(weight.get("dtype")))
    if form is None or symmetric is None:
        return None
    for key, kind, why in (("group_size", int, "must be a positive int"), ("symmetric", bool, "must be a bool")):
        if key not in weight or not isinstance(weight[key], kind):
            raise refused(_NO_BLOCK, f"global_quant_config.weight.{key}", f"`weight.{key} {why}`")
    size = weight["group_size"]
    if weight["symmetric"] is not symmetric or size not in _GROUPS or not isinstance(size, int):
        return None
    if any(columns % size for columns in asked.columns):
        if asked.experts:
            return None
        raise refused(
            f"groups of {size} do not divide the columns of `{asked.name}`",
            "global_quant_config",
            "`The input size is not aligned with the quantized weight shape`",
        )
    return Quantization(form, 4, "", "group", size, symmetric=symmetric, scale_dtype="BF16")


def _mxfp8(asked: Asked, weight: Spec, inputs: Spec) -> Quantization | None:
    """QuarkOCP_MX of linears, whose kernel knows of no activations, and QuarkW8A8Mxfp8MoEMethod of experts."""
    is_quantized = inputs.get("is_dynamic") is True and _has(inputs, _MXFP8, but="scale_format")
    if not _has(weight, _MXFP8) or not (is_quantized or not inputs):
        return None
    if asked.experts and not is_quantized:
        raise refused(
            f"the target's scheme for `{asked.name}` is none that vLLM can build",
            "global_quant_config",
            "`Unsupported activation quant key: None`",
        )
    return microscaled("mxfp8", 8, "dynamic" if inputs else "none")


def _has(spec: Spec, wanted: Spec, but: str = "") -> bool:
    return all(spec.get(key) == value for key, value in wanted.items() if key != but)


def _one(config: object) -> Spec:
    """A list of one entry is that entry; one of several is none of what is made here."""
    if isinstance(config, list):
        config = config[0] if len(config) == 1 else {"dtype": "several"}
    return config if isinstance(config, Mapping) else {}
