"""A target of which only the config is known, for the engines' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import pytest


@dataclass(frozen=True)
class ConfigOnly:
    """A checkpoint that is config and names alone; everything else would be an error to ask for."""

    config: Mapping[str, object]
    names: frozenset[str] = frozenset()
    label: str = "org/target"
    location: str = "org/target"
    revision: str = ""
    quantization: Mapping[str, object] = field(default_factory=dict)
    is_restated: bool = False


@pytest.fixture(scope="session")
def target_of() -> Callable[..., ConfigOnly]:
    """Config (and names) -> a checkpoint."""

    def make(config: Mapping[str, object], names: Iterable[str] = (), **more: str) -> ConfigOnly:
        block = config.get("quantization_config") or {}
        return ConfigOnly(config, frozenset(names), quantization=block, **more)

    return make
