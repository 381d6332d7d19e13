"""vLLM's reading of a Quark block: the list of dense modules, then a config by name, else the one for all.

    MXFP4   groups of 32 under exponents, activations as they are or quantized at run time in another OCP MX format
    FP8     one scale a tensor, a row or a block of 128 x 128
    INT8    one scale a row, activations quantized at run time

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
    return _quantization(asked, config), key


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


def _quantization(asked: Asked, config: object) -> Quantization:
    """In the order in which vLLM asks its schemes."""
    said = config if isinstance(config, Mapping) else {}
    weight, inputs = (_one(said.get(key)) for key in ("weight", "input_tensors"))
    if not said.get("output_tensors") and not said.get("bias") and weight and not weight.get("is_dynamic"):
        for made in (_fp8, _int8, _mxfp4):
            if quantization := made(asked, weight, inputs):
                return quantization
    raise unmade(f"`{asked.name}` in {_named(said.get('weight'))}", "global_quant_config")


def _named(weight: object) -> str:
    """What Quark calls weights that no draft is made in."""
    several = weight if isinstance(weight, list) else [weight]
    said = [one for one in several if isinstance(one, Mapping)]
    dtypes = tuple(str(one.get("dtype")) for one in said)
    if dtypes == (_E4M3,) and said[0].get("scale_format") == "e8m0":
        return "Quark's MXFP8"
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
    if not is_known or any(weight.get(key) != value for key, value in _MXFP4.items()):
        return None
    return microscaled("quark_mxfp4", 4, "dynamic" if inputs else "none")


def _one(config: object) -> Spec:
    """A list of one entry is that entry; one of several is none of what is made here."""
    if isinstance(config, list):
        config = config[0] if len(config) == 1 else {"dtype": "several"}
    return config if isinstance(config, Mapping) else {}
