"""What vLLM asks a target's quantization config about: one question per matrix that it runs, not per matrix on disk.

Names and classes: vllm models/deepseek_v32/nvidia/{mtp,model}.py, model_executor/models/deepseek_v2.py (0.33.0). In the
names of parameters the block stands under `mtp_block.`; in the names that are asked about it never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mtpforge.families import Family, Module

# eh_proj is a plain torch Linear; router and indexer keys are built with no quantization config at all.
DENSE: Final[dict[str, str]] = {
    "eh_proj": "vLLM builds it dense",
    "mlp.gate": "vLLM builds it dense",
    "self_attn.indexer.wk": "vLLM builds it dense, as one matrix with weights_proj",
    "self_attn.indexer.weights_proj": "vLLM builds it dense, as one matrix with wk",
}

# Class of each matrix: config groups may target classes ("Linear" is part of every name here but the last).
CLASSES: Final[dict[str, str]] = {
    "fused_qkv_a_proj": "DeepSeekV2FusedQkvAProjLinear",
    "gate_up_proj": "MergedColumnParallelLinear",
    "q_b_proj": "ColumnParallelLinear",
    "kv_b_proj": "ColumnParallelLinear",
    "o_proj": "RowParallelLinear",
    "down_proj": "RowParallelLinear",
    "wq_b": "ReplicatedLinear",
    "experts": "RoutedExperts",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One question. name: full name that vLLM asks about. parts: full names of its matrices on disk, in shard order.

    templates: modules that the answer is for. experts: all routed experts at once; parts are those of expert 0.
    """

    name: str
    parts: tuple[str, ...]
    templates: tuple[str, ...]
    experts: bool = False

    @property
    def is_fused(self) -> bool:
        """Whether vLLM runs several matrices of the checkpoint as this one."""
        return not self.experts and len(self.parts) > 1

    @property
    def class_name(self) -> str:
        """The class of the matrix in vLLM."""
        return CLASSES[self.name.rpartition(".")[2]]


def questions(family: Family, config: Mapping[str, object]) -> tuple[Asked, ...]:
    """Every question about the layer, linears in the family's order, experts last."""
    prefix = family.prefix(family.layer(config))
    sets: dict[str, list[Module]] = {}
    experts: list[Module] = []
    for module in family.modules(config, 1):
        if module.expert is not None:
            experts.append(module)
        elif module.template not in DENSE:
            sets.setdefault(module.fused or module.name, []).append(module)
    linears = (_asked(prefix + name, prefix, members) for name, members in sets.items())
    stack = experts[0].template.partition(".*.")[0]
    return (*linears, _asked(prefix + stack, prefix, experts, experts=True))


def _asked(name: str, prefix: str, members: list[Module], *, experts: bool = False) -> Asked:
    return Asked(name, tuple(prefix + m.name for m in members), tuple(m.template for m in members), experts)
