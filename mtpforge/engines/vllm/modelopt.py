"""vLLM's reading of a ModelOpt block: exclusion list first, then one algorithm for all, or one for each named layer.

A block stands in config.json, flat, or in hf_quant_config.json, under `quantization`; their keys differ.
Source: vllm quantization/modelopt.py; transformers_utils/model_arch_config_convertor.py:241 (0.33.0).
"""

from __future__ import annotations

from typing import Final

from mtpforge.checkpoint.quantization import QuantConfig, modelopt_quantization
from mtpforge.engines.expressions import quoted
from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.name_matching import excluded
from mtpforge.engines.vllm.refusals import refused, unmade
from mtpforge.errors import shown
from mtpforge.tensors import BF16, Quantization

_MIXED: Final = "MIXED_PRECISION"
_BLOCKS: Final = "FP8_BLOCK_SCALES"  # of experts alone: _BLOCK_FP8_MOE_ALGOS
_NVFP4: Final = ("NVFP4", "W4A16_NVFP4")
_OF_LINEARS: Final = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", *_NVFP4, "MXFP8")  # LINEAR_ALGOS
# Every other algorithm picks vLLM's class whatever the method is called: override_quantization_method of each class.
_BY_METHOD_ALONE: Final = ("FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO")
# _normalize_quantization_config names a method for these alone where config.json has no block.
_OF_SIDE_FILE: Final = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", _MIXED)
# Keys that _from_config of the class for an algorithm asks of a nested block.
_NESTED: Final = {
    **dict.fromkeys(_NVFP4, ("group_size", "kv_cache_quant_algo", "exclude_modules")),
    "MXFP8": ("kv_cache_quant_algo", "exclude_modules"),
}


def decide(block: QuantConfig, asked: Asked) -> tuple[Quantization, str]:
    """How vLLM would build a matrix, and which entry decided."""
    _refuse_whole(block)
    key = "ignore" if "ignore" in block.raw and _nested(block) is None else "exclude_modules"
    if (entry := excluded(asked, block.ignore, key)) is not None:
        return BF16, f"{key} entry `{quoted(entry)}`"
    if block.quant_algo == _MIXED:
        return _mixed(block, asked)
    algo = "W4A16_NVFP4" if block.quant_algo == "NVFP4" and _weights_only(block) else block.quant_algo
    return _made(asked, algo, block.group_size), f"quant_algo {block.quant_algo}, no {key} entry"


def _made(asked: Asked, algo: str, group_size: int | None, *, mixed: bool = False) -> Quantization:
    """Of scales of rows and blocks vLLM's experts know nothing; the two ways to say so build different things."""
    if asked.experts and algo in (*_BY_METHOD_ALONE, _BLOCKS):
        raise unmade(f"experts in ModelOpt's {algo}{' of mixed precision' if mixed else ''}", "quant_algo")
    return modelopt_quantization(algo, group_size)


def _nested(block: QuantConfig) -> dict[str, object] | None:
    inner = block.raw.get("quantization")
    return inner if isinstance(inner, dict) else None


def _refuse_whole(block: QuantConfig) -> None:
    """What stops vLLM whatever the matrix."""
    what, algo, inner = "vLLM takes no such ModelOpt block", block.quant_algo, _nested(block)
    if algo not in (*_OF_LINEARS, _MIXED):
        why = f"`ModelOpt currently only supports: {', '.join((*_OF_LINEARS, _MIXED))}`"
        raise refused(what, "quant_algo", why if algo else "`Missing 'quant_algo' in quantization config`")
    if inner is not None and "quant_method" not in block.raw and algo not in _OF_SIDE_FILE:
        raise refused(
            what,
            "quant_algo",
            f"`Unknown ModelOpt quant algo: {shown(algo)}`, where hf_quant_config.json alone names it",
            f"add a `quantization_config` with quant_method modelopt and quant_algo {shown(algo)} to config.json",
        )
    named = str(block.raw.get("quant_method", "modelopt")).lower()
    if algo in _BY_METHOD_ALONE and named == "modelopt_mixed":
        raise unmade(f"{algo} under quant_method {named}", "quant_algo")
    if algo in _BY_METHOD_ALONE and named != "modelopt":
        raise refused(what, "quant_method", f"`Unsupported ModelOpt quant_algo` {algo} under {shown(named)}")
    missing = [key for key in _NESTED.get(algo, ()) if inner is not None and key not in inner]
    if missing:
        named = algo.removeprefix("W4A16_")
        why = f"`{named} quantization requires the following fields`: {', '.join(missing)}"
        raise refused(what, "quantization", why)
    if algo == _MIXED and not block.quantized_layers:
        raise refused(
            what,
            "quantized_layers",
            "`MIXED_PRECISION quant_algo requires a non-empty 'quantized_layers' mapping`, in config.json or in"
            " ModelOpt's hf_quant_config.json beside it",
            "fetch hf_quant_config.json from where the target was published",
        )


def _weights_only(block: QuantConfig) -> bool:
    """ModelOptNvFp4Config._from_config: every config group leaves the activations alone."""
    groups = block.raw.get("config_groups")
    return (
        isinstance(groups, dict)
        and bool(groups)
        and all(isinstance(g, dict) and g.get("input_activations") is None for g in groups.values())
    )


def _mixed(block: QuantConfig, asked: Asked) -> tuple[Quantization, str]:
    """ModelOptMixedPrecisionConfig._resolve_quant_algo; of an algorithm that it does not know, dense."""
    layers = block.quantized_layers
    named = (
        [asked.name] if asked.name in layers else [part for part in asked.parts if asked.is_fused and part in layers]
    )
    # Experts without an entry below their own name take the first of the MLP that they stand in.
    for above in (f"{asked.name}.", asked.name.removesuffix("experts") if asked.experts else ""):
        named = named or [key for key in layers if above and key.startswith(above)][:1]
    algos = {layers[name].quant_algo for name in named}
    if len(algos) > 1:
        raise refused(
            f"the target gives the parts of `{asked.name}` different algorithms",
            "quantized_layers",
            "`All shards must use the same quantization`",
            "make their entries alike in the target's config",
        )
    if not algos & {*_OF_LINEARS, *([_BLOCKS] if asked.experts else [])}:
        return BF16, f"quantized_layers entry `{quoted(named[0])}`" if named else "no quantized_layers entry"
    of_nvfp4 = (layer.group_size for layer in layers.values() if layer.quant_algo in _NVFP4)
    size = block.group_size or next(of_nvfp4, None)
    return _made(asked, algos.pop(), size, mixed=True), f"quantized_layers entry `{quoted(named[0])}`"
