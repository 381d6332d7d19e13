"""How vLLM splits the layer over ranks: what refuses to divide, and how many bytes one rank holds.

Source: vllm model_executor/layers: linear.py, fused_moe, quantization/{fp8,compressed_tensors} (0.33.0). Attention
output and down projections are split along their inputs, query and value heads, gate and up along their outputs; the
rest lies on every rank. With expert parallelism whole experts are dealt out instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from mtpforge.engines.engine import Serving
from mtpforge.families import Family
from mtpforge.report import Trap
from mtpforge.scheme import Scheme
from mtpforge.tensors import Quantization, Spec

_WORD_BITS: Final = 32  # packed integers: a rank holds whole words
_SPLIT: Final[dict[str, Literal["out", "in"]]] = {
    "q_b_proj": "out",
    "kv_b_proj": "out",
    "gate_proj": "out",
    "up_proj": "out",
    "o_proj": "in",
    "down_proj": "in",
}


def serving_traps(family: Family, config: Mapping[str, object], scheme: Scheme, serving: Serving) -> tuple[Trap, ...]:
    """Ways to serve that vLLM refuses for this layer and scheme."""
    return (
        tuple(_counts(serving))
        or tuple(_heads(family, config, serving))
        or tuple(_axes(family, config, scheme, serving))
    )


def memory(specs: Mapping[str, Spec], serving: Serving) -> int:
    """Bytes of weights that a draft adds on one rank; its KV cache and the shared embedding and head not counted."""
    ranks = max(serving.tensor_parallel, 1)
    return sum(-(-spec.n_bytes // ranks) if _is_split(name) else spec.n_bytes for name, spec in specs.items())


def _is_split(name: str) -> bool:
    return any(part in _SPLIT for part in name.split("."))


def _counts(serving: Serving) -> Iterator[Trap]:
    if serving.tensor_parallel < 1:
        yield Trap("tensor-parallel-size", "error", "the tensor parallel size must be 1 or more", "`--tp 1`")
    if serving.speculative_tokens < 1:
        yield Trap(
            "speculative-tokens", "error", "at least one token must be drafted", "num_speculative_tokens 1 or more"
        )


def _heads(family: Family, config: Mapping[str, object], serving: Serving) -> Iterator[Trap]:
    heads = family.text(config).get("num_attention_heads")
    if isinstance(heads, int) and heads % serving.tensor_parallel:
        yield Trap(
            "heads-not-divisible",
            "error",
            f"{heads} attention heads cannot be split over {serving.tensor_parallel} ranks",
            f"`--tp {_next_divisor(heads, serving.tensor_parallel)}`",
        )


def _axes(family: Family, config: Mapping[str, object], scheme: Scheme, serving: Serving) -> Iterator[Trap]:
    ranks = serving.tensor_parallel
    for module in family.modules(config, 1):
        axis = _SPLIT.get(module.template.rpartition(".")[2])
        if axis is None or (module.expert is not None and serving.expert_parallel):
            continue
        quantization = scheme.of(module.template).quantization
        size = module.shape[0 if axis == "out" else 1]
        unit, what = _unit(quantization, axis)
        if size % (ranks * unit):
            way_out = "`--ep`, or " if module.expert is not None else ""
            yield Trap(
                "not-divisible",
                "error",
                f"`{module.template}`: {size} {'rows' if axis == 'out' else 'columns'} over {ranks} ranks cut {what}",
                f"{way_out}`--tp {_next_divisor(size // unit, ranks)}`",
                where=f"{quantization}",
            )


def _unit(q: Quantization, axis: Literal["out", "in"]) -> tuple[int, str]:
    """Rows or columns that one rank must hold a multiple of, and what would be cut otherwise."""
    if q.block is not None:
        return q.block[0 if axis == "out" else 1], f"the {q.block[0]} x {q.block[1]} blocks of a scale"
    if axis == "in" and q.group_size:
        return q.group_size, f"the groups of {q.group_size} that share a scale"
    if q.format == "pack_quantized" and (axis == "in" or not q.symmetric):
        # Codes are packed along the columns, zero points along the rows.
        return _WORD_BITS // math.gcd(_WORD_BITS, q.bits), f"the words of {_WORD_BITS} bits that hold several numbers"
    return 1, "a row" if axis == "out" else "a column"


def _next_divisor(size: int, ranks: int) -> int:
    """The largest number of ranks, not above the one asked for, that divides a size."""
    return next((n for n in range(min(ranks, size), 0, -1) if size % n == 0), 1)
