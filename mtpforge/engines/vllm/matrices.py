"""What vLLM asks a target's quantization config about: one question per matrix that it runs, not per matrix on disk.

In the names of parameters the block stands under `mtp_block.`; in those that are asked about it never does (0.33.0).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final

from mtpforge.engines.vllm.draft_classes import draft_class
from mtpforge.engines.vllm.target_names import around
from mtpforge.families import Family, Module

_HEAD: Final = "ParallelLMHead"


@dataclass(frozen=True, slots=True)
class Asked:
    """One question. name: full name that vLLM asks about. parts: full names of its matrices on disk, in shard order.

    templates: modules that the answer is for. class_name: vLLM's class of the matrix. experts: all routed experts at
    once; parts are those of expert 0. columns: of its matrices on disk.
    """

    name: str
    parts: tuple[str, ...]
    templates: tuple[str, ...]
    class_name: str = ""
    experts: bool = False
    columns: tuple[int, ...] = ()

    @property
    def is_fused(self) -> bool:
        """Whether vLLM runs several matrices of the checkpoint as this one."""
        return not self.experts and len(self.parts) > 1

    @property
    def is_head(self) -> bool:
        """Whether it is the model's head."""
        return self.class_name == _HEAD


def questions(family: Family, config: Mapping[str, object]) -> tuple[Asked, ...]:
    """Every question about the layer, linears in the family's order, experts last."""
    return _of_layer(family, family.prefix(family.layer(config)), family.modules(config, 1))


def head(family: Family, config: Mapping[str, object]) -> Asked:
    """The question about the model's head."""
    name = f"{around(family, config)}lm_head"
    return Asked(name, (name,), (), _HEAD)


def main_questions(family: Family, config: Mapping[str, object]) -> tuple[Asked, ...]:
    """Every question about the model before the layer and about the head; which layers have experts is not asked."""
    modules = family.main_modules(config)
    before = around(family, config)
    layers = (_of_layer(family, before + family.prefix(layer), modules) for layer in range(family.layer(config)))
    return (*chain.from_iterable(layers), head(family, config))


def _of_layer(family: Family, prefix: str, modules: Iterable[Module]) -> tuple[Asked, ...]:
    known = draft_class(family)
    sets: dict[str, list[Module]] = {}
    stacks: dict[str, list[Module]] = {}
    for module in modules:
        if module.expert is not None:
            stacks.setdefault(module.template.partition(".*.")[0], []).append(module)
        elif module.template not in known.dense:
            sets.setdefault(module.fused or module.name, []).append(module)
    return tuple(
        Asked(
            prefix + name,
            tuple(prefix + module.name for module in members),
            tuple(module.template for module in members),
            known.matrices[name.rpartition(".")[2]],
            experts=name in stacks,
            columns=tuple(dict.fromkeys(module.shape[1] for module in members)),
        )
        for name, members in (sets | stacks).items()
    )
