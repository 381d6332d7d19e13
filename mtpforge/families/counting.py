"""How many routed experts a layer has: by its config, and by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mtpforge.families.family import Family

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint


def config_experts(family: Family, config: Mapping[str, object]) -> int | None:
    """Routed experts that the config states, None where it states none."""
    text = family.text(config)
    return family.n_experts(config) if any(key in text for key in family.expert_keys) else None


def expert_numbers(family: Family, names: Iterable[str]) -> frozenset[int]:
    """Numbers of the experts that tensor names speak of; names local to a layer, or with the prefix of one."""
    stacked = (row.template for row in family.module_rows if "*" in row.template)
    templates = "|".join(re.escape(template).replace(r"\*", r"(\d{1,9})") for template in stacked)
    pattern = re.compile(rf"(?:.*\.)?(?:{templates})\.[^.]+")
    found = (pattern.fullmatch(name) for name in names)
    return frozenset(int(number) for match in found if match for number in match.groups() if number is not None)


def stored_experts(family: Family, checkpoint: Checkpoint) -> int:
    """Routed experts of the last main layer, by tensor names; 0 where the names do not tell."""
    prefix = family.prefix(family.layer(checkpoint.config) - 1)
    return len(expert_numbers(family, (name for name in checkpoint.names if name.startswith(prefix))))


def served_experts(family: Family, target: Checkpoint) -> int:
    """Routed experts of a model that is served: its tensors decide, else its config."""
    return stored_experts(family, target) or family.n_experts(target.config)
