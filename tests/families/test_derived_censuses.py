"""Layers whose census is derived: the family's names, dtypes and shapes are those of transformers' classes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from families.test_family import described

CENSUS = Path(__file__).parents[1] / "data" / "census"
# release -> layer, tensors without copies and scales, FP8 matrices, shape of its copies of embedding and head
RELEASES = {
    "deepseek-v3": (61, 786, 776, (129280, 7168)),
    "deepseek-v3.2": (61, 791, 778, (129280, 7168)),
    "glm-4.5": (92, 500, 0, (151552, 5120)),
    "glm-4.5-air": (46, 402, 0, None),
    "glm-4.7-flash": (47, 210, 0, (154880, 2048)),
}
COPIES = ("embed_tokens.weight", "shared_head.head.weight")


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make", CENSUS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_derived_census_is_counted_here(make):
    assert {release: copies is not None for release, (*_, copies) in RELEASES.items()} == make.COPIES


@pytest.mark.parametrize("release", RELEASES)
def test_layer_has_the_names_dtypes_and_shapes_of_its_census(release_config, census, release):
    rows = census(release)
    layer, n_tensors, n_matrices, copies = RELEASES[release]
    scales = {name for name in rows if name.endswith("_scale_inv")}
    assert scales == {f"{name}_scale_inv" for name, (dtype, _) in rows.items() if dtype == "F8_E4M3"}
    plain = {n: ("BF16" if d == "F8_E4M3" else d, shape) for n, (d, shape) in rows.items() if n not in scales}
    repeated = [plain.pop(f"model.layers.{layer}.{copy}", None) for copy in COPIES]
    assert repeated == [copies and ("BF16", copies)] * 2
    assert (len(plain), len(scales)) == (n_tensors, n_matrices)
    assert described(release_config(f"target-{release}")) == plain


@pytest.mark.parametrize("release", RELEASES)
def test_census_is_what_transformers_classes_have(make, release):
    assert (CENSUS / f"{release}.tsv").read_text() == make.census(release)
