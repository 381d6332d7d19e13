"""What each quantization method of a target says about one matrix: dense, or a quantization, and which entry decided.

METHODS     quant_method -> function of (parsed block, question)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from mtpforge.checkpoint.quantization import QuantConfig, fp8_quantization, modelopt_quantization
from mtpforge.engines.vllm import compressed_tensors
from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.name_matching import below, exact_or_regex, excluded, listed, quoted, skipped
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.tensors import BF16, Quantization

Decision: TypeAlias = tuple[Quantization, str]
Decide: TypeAlias = Callable[[QuantConfig, Asked], Decision]

# vllm model_executor/layers/quantization/__init__.py, QUANTIZATION_METHODS (0.33.0), with the spellings that it maps.
_KNOWN: Final = """
awq auto_awq fp8 fbgemm_fp8 fp_quant modelopt modelopt_fp4 modelopt_mxfp8 modelopt_mixed auto_gptq gptq gptq_marlin
awq_marlin humming compressed-tensors compressed_tensors experts_int8 quark moe_wna16 torchao inc auto-round mxfp4
gpt_oss_mxfp4 deepseek_v4_fp8 online fp8_per_tensor fp8_per_block fp8_per_channel int8_per_channel_weight_only
nvfp4_per_token mxfp8
"""
KNOWN: Final = frozenset(_KNOWN.split())


def decide(block: QuantConfig, asked: Asked) -> Decision:
    """How vLLM would build a matrix under a target's quantization block, and why.

    A method that vLLM does not know, or that no draft can be made for yet, is an error.
    """
    method = METHODS.get(block.method)
    if method is not None:
        return method(block, asked)
    if block.method in KNOWN:
        raise MtpforgeError(
            f"drafts for targets of method `{shown(block.method)}` cannot be made yet",
            where=Where("config.json", inside="quantization_config.quant_method"),
            why=f"known: {', '.join(sorted(name for name in METHODS if name))}",
            fix="`mtpforge extract --source S -o DIR` writes the plain layer",
        )
    raise MtpforgeError(
        f"vLLM knows no quantization method `{shown(block.method)}`",
        where=Where("config.json", inside="quantization_config.quant_method"),
        why="it would not start with this target",
        fix="serve the target with the engine that it was made for",
    )


def _unquantized(_block: QuantConfig, _asked: Asked) -> Decision:
    return BF16, "the target is not quantized"


def _fp8(block: QuantConfig, asked: Asked) -> Decision:
    # vllm quantization/fp8.py: Fp8Config.get_quant_method
    key = "ignored_layers" if block.raw.get("ignored_layers") else "modules_to_not_convert"
    if entry := skipped(asked, block.ignore, key):
        return BF16, f"{key} entry `{quoted(entry)}`"
    if block.raw.get("store_dtype"):
        raise _refused("store_dtype", "experts stored in another format than FP8")
    blocks = "x".join(str(n) for n in block.block or ())
    return fp8_quantization(block), f"method fp8, {f'blocks of {blocks}' if blocks else 'one scale per tensor'}"


def _modelopt(block: QuantConfig, asked: Asked) -> Decision:
    # vllm quantization/modelopt.py: ModelOptQuantConfigBase.is_layer_excluded, get_quant_method
    key = "ignore" if "ignore" in block.raw else "exclude_modules"
    if entry := excluded(asked, block.ignore, key):
        return BF16, f"{key} entry `{quoted(entry)}`"
    if block.quant_algo == "MIXED_PRECISION":
        return _mixed(block, asked)
    algo = block.quant_algo
    if algo == "NVFP4" and _weights_only(block):
        algo = "W4A16_NVFP4"
    return modelopt_quantization(algo, block.group_size), f"quant_algo {block.quant_algo}, no {key} entry"


def _weights_only(block: QuantConfig) -> bool:
    """ModelOptNvFp4Config._from_config: every config group leaves the activations alone."""
    groups = block.raw.get("config_groups")
    return (
        isinstance(groups, dict)
        and bool(groups)
        and all(isinstance(g, dict) and g.get("input_activations") is None for g in groups.values())
    )


def _mixed(block: QuantConfig, asked: Asked) -> Decision:
    """ModelOptMixedPrecisionConfig._resolve_quant_algo: by name, by parts, then by anything below the name."""
    layers = block.quantized_layers
    named = (
        [asked.name] if asked.name in layers else [part for part in asked.parts if asked.is_fused and part in layers]
    )
    named = named or [key for key in layers if key.startswith(f"{asked.name}.")][:1]
    if not named:
        if asked.experts and any(key.startswith(asked.name.removesuffix("experts")) for key in layers):
            raise _refused("quantized_layers", "experts that are quantized because another part of the MLP is")
        return BF16, "no quantized_layers entry"
    algos = {layers[name].quant_algo for name in named}
    if len(algos) > 1:
        raise _refused("quantized_layers", f"different algorithms within `{asked.name}`, which vLLM refuses")
    entry = layers[named[0]]
    return modelopt_quantization(entry.quant_algo, entry.group_size), f"quantized_layers entry `{quoted(named[0])}`"


def _quark(block: QuantConfig, asked: Asked) -> Decision:
    # vllm quantization/quark/utils.py: should_ignore_layer; for experts any entry below their name counts
    entry = (below(asked, block.ignore) if asked.experts else None) or listed(
        asked, block.ignore, exact_or_regex, "exclude"
    )
    if entry is None:
        raise _refused("exclude", f"`{asked.name}` quantized by Quark")
    return BF16, f"exclude entry `{quoted(entry)}`"


def _refused(key: str, what: str) -> MtpforgeError:
    return MtpforgeError(
        f"drafts with {what} cannot be made yet",
        where=Where("config.json", inside=f"quantization_config.{key}"),
        fix="`mtpforge extract --source S -o DIR` writes the plain layer",
    )


METHODS: Final[dict[str, Decide]] = {
    "": _unquantized,
    "compressed-tensors": compressed_tensors.decide,
    "fp8": _fp8,
    "modelopt": _modelopt,
    "quark": _quark,
}
