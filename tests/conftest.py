"""Fixtures that every test may use: the tiny trained GLM-5.2 in its layouts, configs and censuses of releases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"
DEMO = Path(__file__).parents[1] / "mtpforge" / "_demo"


@pytest.fixture(scope="session")
def tinyglm() -> Callable[[str], Path]:
    """The folder of one layout: bf16, fp8, nvfp4, int4-int8mix, awq-int4, awq-int4-12experts. Read only."""

    def folder(layout: str) -> Path:
        home = DEMO if (DEMO / layout).is_dir() else DATA / "tinyglm"
        return home / layout

    return folder


@pytest.fixture(scope="session")
def release_config() -> Callable[[str], dict[str, object]]:
    """config.json of a published release by short name, e.g. `target-fp8`."""

    def load(name: str) -> dict[str, object]:
        return json.loads((DATA / "configs" / f"{name}.config.json").read_text())

    return load


@pytest.fixture(scope="session")
def census() -> Callable[[str], dict[str, tuple[str, tuple[int, ...]]]]:
    """Tensors of a published layer 78: name -> (dtype, shape)."""

    def load(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        rows: dict[str, tuple[str, tuple[int, ...]]] = {}
        for line in (DATA / "census" / f"{name}.tsv").read_text().splitlines():
            if line.startswith("#"):
                continue
            tensor, dtype, shape, *_ = line.split("\t")
            rows[tensor] = dtype, () if shape == "-" else tuple(int(n) for n in shape.split(","))
        return rows

    return load
