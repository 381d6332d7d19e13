"""vLLM's reading of an AWQ block: one way to store for all, but for modules whose name contains an entry of a list.

Experts are asked for by the name of their stack, so that no entry of a single expert leaves them dense. Where the block
has no list vLLM makes one from the target's tensor headers (`header_lists`).
Source: vllm quantization/auto_awq.py, utils/quant_utils.py:is_layer_skipped (0.33.0).
"""

from __future__ import annotations

from typing import Final

from mtpforge.checkpoint.json_fields import Fields
from mtpforge.checkpoint.quantization import QuantConfig
from mtpforge.engines.expressions import quoted
from mtpforge.engines.vllm import auto_gptq
from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.name_matching import containing
from mtpforge.engines.vllm.refusals import needed, refused, unmade
from mtpforge.errors import shown
from mtpforge.tensors import BF16, Quantization

LIST: Final = "modules_to_not_convert"
BITS: Final = 4


def decide(block: QuantConfig, asked: Asked) -> tuple[Quantization, str]:
    """How vLLM would build a matrix, and which entry decided."""
    fields = Fields(block.raw, "quantization_config")
    bits, size, zero_point = (
        needed(block.raw, *keys) for keys in (("w_bit", "bits"), ("q_group_size", "group_size"), ("zero_point",))
    )
    if bits != BITS:
        raise refused("vLLM takes no such AWQ block", "bits", f"`Unsupported num_bits = {shown(bits)}. Supported: 4`")
    if asked.is_head and block.raw.get("lm_head") is not True:
        return BF16, "lm_head is not true"
    if (entry := containing(asked, fields.texts(LIST), LIST)) is not None:
        return BF16, f"{LIST} entry `{quoted(entry)}`"
    if zero_point is not True:
        raise unmade("AWQ weights without zero points", "zero_point")
    return quantization(asked, size), f"method awq, no {LIST} entry"


def quantization(asked: Asked, size: object) -> Quantization:
    """How a matrix of 4 bits is stored in groups of `size`."""
    if not isinstance(size, int) or size <= 0:
        raise unmade(f"AWQ weights in groups of {shown(size)}", "group_size")
    if asked.experts and not auto_gptq.has_kernel(asked, size):
        raise unmade(f"AWQ experts in groups of {size}, for which Marlin has no kernel,", "group_size")
    if cut := next((n for n in asked.columns if n % size), None):
        raise refused(
            f"groups of {size} do not divide the {cut} columns of `{asked.name}`",
            "group_size",
            "`The input size is not aligned with the quantized weight shape`",
        )
    return Quantization("awq", BITS, "", "group", size, symmetric=False, scale_dtype="F16")
