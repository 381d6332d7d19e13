"""other_layout(): the models that draft otherwise, by model_type: what is different there, and what people use."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

_TABLE: Final = "layouts.toml"


@dataclass(frozen=True, slots=True)
class Layout:
    """One `[[layouts]]`: the table says what each field holds."""

    models: str
    model_types: tuple[str, ...]
    source: str
    why: str
    instead: str


@cache
def other_layouts() -> tuple[Layout, ...]:
    """Every row of the table."""
    rows = tomllib.loads((files(__name__) / _TABLE).read_text(encoding="utf-8"))["layouts"]
    return tuple(Layout(**{**row, "model_types": tuple(row["model_types"])}) for row in rows)


def other_layout(config: Mapping[str, object]) -> Layout | None:
    """The row of a config, or of a part of one, by its model_type; None where no row names it."""
    return next((layout for layout in other_layouts() if config.get("model_type") in layout.model_types), None)
