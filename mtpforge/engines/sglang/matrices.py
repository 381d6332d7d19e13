"""What SGLang asks a quantization config about: one question per matrix that it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mtpforge.engines.sglang.draft_classes import DraftClass, draft_class
from mtpforge.families import Family

DECODER = "model.decoder."  # of a draft, whatever the tensors are called: DeepseekModelNextN (0.5.23)


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
    known = draft_class(family)
    matrix = {part: name for name, parts in known.fused.items() for part in parts}
    sets: dict[str, list[str]] = {}
    stack: list[str] = []
    for module in family.modules(config, 1):
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
