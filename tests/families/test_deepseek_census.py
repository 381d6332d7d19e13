"""DeepSeek V3 and V3.2: the layer's census."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
from families.test_family import described

from mtpforge.families import family_of

CENSUS = Path(__file__).parents[1] / "data" / "census"
# release -> tensors of the unquantized layer without copies, FP8 matrices of it
RELEASES = {"deepseek-v3": (786, 776), "deepseek-v3.2": (791, 778)}
COPIES = ("embed_tokens.weight", "shared_head.head.weight")
P = "model.layers.61."


@pytest.mark.parametrize("release", RELEASES)
def test_layer_has_the_names_and_shapes_of_its_census(release_config, census, release):
    rows = census(release)
    scales = {name for name in rows if name.endswith("_scale_inv")}
    assert scales == {f"{name}_scale_inv" for name, (dtype, _) in rows.items() if dtype == "F8_E4M3"}
    plain = {n: ("BF16" if d == "F8_E4M3" else d, shape) for n, (d, shape) in rows.items() if n not in scales}
    for copy in COPIES:
        assert plain.pop(P + copy) == ("BF16", (129280, 7168))
    assert (len(plain), len(scales)) == RELEASES[release]
    assert described(release_config(f"target-{release}")) == plain


@pytest.mark.parametrize("release", RELEASES)
def test_census_is_what_transformers_classes_have(release):
    spec = importlib.util.spec_from_file_location("make_deepseek", CENSUS / "make_deepseek.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert (CENSUS / f"{release}.tsv").read_text() == make.census(release)


def test_layer_has_the_parameters_that_deepseek_counts(census):
    """README_WEIGHTS.md of DeepSeek-V3: 11.5 B of its own, beside 0.9 B each of embedding and head."""
    counts = {name: math.prod(shape) for name, (_, shape) in census("deepseek-v3").items() if "scale" not in name}
    copies = [counts.pop(P + name) for name in COPIES]
    assert [round(n / 1e9, 1) for n in copies] == [0.9, 0.9]
    assert 11.5e9 < sum(counts.values()) < 11.65e9


@pytest.mark.parametrize("release", RELEASES)
def test_layers_before_it_may_have_a_dense_mlp(release_config, release):
    config = release_config(f"target-{release}")
    shapes = {m.name: m.shape for m in family_of(config).main_modules(config) if m.kind == "dense MLP"}
    wide = {"mlp.gate_proj": (18432, 7168), "mlp.up_proj": (18432, 7168), "mlp.down_proj": (7168, 18432)}
    assert shapes == wide
