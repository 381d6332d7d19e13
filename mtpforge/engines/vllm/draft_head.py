"""The draft's own head, which vLLM builds by the target's block and gives up for the target's once both are loaded.

Under NVFP4 of ModelOpt that is too late: after loading the draft vLLM processes its weights for the kernels, finds
scales that no checkpoint holds, and stops: "NVFP4 weight_scale for layer 'parallel_lm_head' was never loaded".
Source: vllm quantization/modelopt.py:2077, spec_decode/llm_base_proposer.py (0.33.0).
"""

from __future__ import annotations

from collections.abc import Mapping

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines.vllm.draft_classes import draft_class
from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.name_matching import excluded
from mtpforge.engines.vllm.restatements import modelopt_without
from mtpforge.families import Family


def quantized_head(block: Mapping[str, object], config: Mapping[str, object], family: Family) -> str:
    """The head's name where vLLM stops over it, "" elsewhere. config: the target's."""
    told = parse(block)
    name = f"{family.prefix(family.layer(config))}head"
    is_built = draft_class(family).builds_head and told.method == "modelopt" and "NVFP4" in told.quant_algo
    return name if is_built and excluded(Asked(name, (name,), ()), told.ignore, "ignore") is None else ""


def without_head(target: Checkpoint, family: Family) -> Mapping[str, object]:
    """The target's quantization block, in which the head is excluded where vLLM would stop over it."""
    name = quantized_head(target.quantization, target.config, family)
    return modelopt_without(target.quantization, name) if name else target.quantization
