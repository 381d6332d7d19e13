"""What each quantization method of a target says about one matrix: dense, or a quantization, and which entry decided.

METHODS     quant_method -> function of (parsed block, question)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from mtpforge.checkpoint.quantization import QuantConfig, fp8_quantization
from mtpforge.engines.expressions import quoted
from mtpforge.engines.vllm import auto_awq, auto_gptq, compressed_tensors, inc, modelopt, quark
from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.name_matching import skipped
from mtpforge.engines.vllm.refusals import refused, unmade
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
            fix="`mtpforge extract --source S -o DIR` writes the layer in BF16",
        )
    raise refused(
        f"vLLM knows no quantization method `{shown(block.method)}`", "quant_method", "`Unknown quantization method`"
    )


def _unquantized(_block: QuantConfig, _asked: Asked) -> Decision:
    return BF16, "the target is not quantized"


def _fp8(block: QuantConfig, asked: Asked) -> Decision:
    # vllm quantization/fp8.py:85-160, Fp8Config
    if block.activation_scheme not in ("static", "dynamic"):
        why = f"`Unsupported activation scheme {shown(block.activation_scheme)}`" if block.activation_scheme else ""
        raise _no_fp8("activation_scheme", why or "`Cannot find any of ['activation_scheme']`")
    if block.block is not None and block.activation_scheme == "static":
        raise _no_fp8("activation_scheme", "`The block-wise quantization only supports dynamic activation scheme`")
    key = "ignored_layers" if block.raw.get("ignored_layers") else "modules_to_not_convert"
    if entry := skipped(asked, block.ignore, key):
        return BF16, f"{key} entry `{quoted(entry)}`"
    if asked.experts and block.raw.get("store_dtype") == "mxfp4":
        raise unmade("experts stored in another format than FP8", "store_dtype")
    if asked.experts and block.block == (1, 128):
        # fused_moe/oracle/fp8.py:546
        raise _no_fp8("weight_block_size", "`No FP8 MoE backend supports` experts with one scale a row of 128")
    blocks = "x".join(str(n) for n in block.block or ())
    return fp8_quantization(block), f"method fp8, {f'blocks of {blocks}' if blocks else 'one scale per tensor'}"


def _no_fp8(key: str, why: str) -> MtpforgeError:
    return refused("vLLM takes no such FP8 block", key, why)


METHODS: Final[dict[str, Decide]] = {
    "": _unquantized,
    "auto-round": inc.decide,
    "awq": auto_awq.decide,
    "compressed-tensors": compressed_tensors.decide,
    "fp8": _fp8,
    "gptq": auto_gptq.decide,
    "modelopt": modelopt.decide,
    "quark": quark.decide,
}
