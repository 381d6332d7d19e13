"""Fixtures that every test may use: the tiny trained GLM-5.2 in its layouts, configs and censuses of releases."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mtpforge.tensors import Quantization

WIDTHS = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I8": 1, "I32": 4, "I64": 8}  # bytes of one element
DATA = Path(__file__).parent / "data"
DEMO = Path(__file__).parents[1] / "mtpforge" / "_demo"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Torch would take every core in every one of these processes, and in what they start: three times slower, seen.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sampled(n)` the first case and every n-th after it are usual, the others slow."""
    seen: Counter[str] = Counter()
    for item in items:
        if mark := item.get_closest_marker("sampled"):
            test = item.nodeid.partition("[")[0]
            if seen[test] % mark.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[test] += 1


@pytest.fixture(autouse=True)
def no_form_without_a_name(monkeypatch):
    """What people read names a form by `formats.label`; the fields of the record are for nobody."""

    def refuse(quantization):
        raise AssertionError(f"a message spells out {quantization!r}")

    monkeypatch.setattr(Quantization, "__str__", refuse)


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


@pytest.fixture(scope="session")
def census_folder(
    tmp_path_factory: pytest.TempPathFactory,
    release_config: Callable[[str], dict[str, object]],
    census: Callable[[str], dict[str, tuple[str, tuple[int, ...]]]],
) -> Callable[[str, str], Path]:
    """A full-size checkpoint of which only headers exist: a sparse file whose every tensor reads as zeros."""

    def make(census_name: str, config_name: str) -> Path:
        folder = tmp_path_factory.mktemp(census_name)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, (dtype, shape) in census(census_name).items():
            n_bytes = math.prod(shape) * WIDTHS[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + n_bytes]}
            offset += n_bytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
        (folder / "config.json").write_text(json.dumps(release_config(config_name)))
        return folder

    return make


@pytest.fixture(scope="session")
def config_folder(
    tmp_path_factory: pytest.TempPathFactory, release_config: Callable[[str], dict[str, object]]
) -> Callable[[str], Path]:
    """A target of which only config.json is known."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(release_config(name)))
        return folder

    return make
