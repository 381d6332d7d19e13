"""What SGLang asks a quantization config about: one question per matrix that it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from mtpforge.engines.sglang.draft_classes import DraftClass, draft_class
from mtpforge.families import Family, Module
from mtpforge.tensors import Quantization

DECODER = "model.decoder."  # of a draft, whatever the tensors are called: DeepseekModelNextN (0.5.23)


Decision: TypeAlias = tuple[Quantization, str]  # what is built, and which entry decided


@dataclass(frozen=True, slots=True)
class Asked:
    """One question. names: full names that are asked about, all of which must have one answer.

    shards: the same by the matrices on disk. templates: modules that the answer is for. experts: all routed experts.
    """

    names: tuple[str, ...]
    shards: tuple[str, ...]
    templates: tuple[str, ...]
    experts: bool = False


def questions(family: Family, config: Mapping[str, object], prefix: str) -> tuple[Asked, ...]:
    """Every question about a layer whose names begin so, linears in the family's order, experts last."""
    return _of_layer(family, family.modules(config, 1), prefix)


def main_questions(family: Family, config: Mapping[str, object]) -> tuple[Asked, ...]:
    """Every question about the model before the layer; which of its layers have experts is not asked."""
    modules = family.main_modules(config)
    layers = (_of_layer(family, modules, family.prefix(number)) for number in range(family.layer(config)))
    return tuple(chain.from_iterable(layers))


def _of_layer(family: Family, modules: Iterable[Module], prefix: str) -> tuple[Asked, ...]:
    known = draft_class(family)
    matrix = {part: name for name, parts in known.fused.items() for part in parts}
    sets: dict[str, list[str]] = {}
    stack: list[str] = []
    for module in modules:
        if module.expert is not None:
            stack.append(module.template)
        elif module.template not in known.dense:
            stem, _, last = module.template.rpartition(".")
            sets.setdefault(f"{stem}.{matrix.get(last, last)}" if module.fused else module.template, []).append(
                module.template
            )
    linears = (
        Asked((prefix + name,), _shards(name, templates, known, prefix), tuple(templates))
        for name, templates in sets.items()
    )
    first = tuple(prefix + template.replace("*", "0") for template in stack)
    return (*linears, Asked(first, first, tuple(stack), experts=True))


def _shards(name: str, templates: list[str], known: DraftClass, prefix: str) -> tuple[str, ...]:
    is_whole = name.rpartition(".")[2] in known.asked_whole
    return (prefix + name,) if is_whole else tuple(prefix + template for template in templates)
