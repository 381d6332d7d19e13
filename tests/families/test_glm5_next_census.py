"""GLM-5.3-Flash: the layer's censuses, and how names and configs of what lies in a wrapper are read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from families.test_family import described
from safetensors.torch import save_file

from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.metadata import index
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.sourcing import stored_layer

CENSUS = Path(__file__).parents[1] / "data" / "census"
CONFIG = "target-glm-5.3-flash-fp8"
WITHIN, ALONE = "model.language_model.", "model."
# As counted in the releases: tensors of layer 45 in BF16, their values, and tensors in FP8.
N_BF16, N_VALUES, N_FP8 = 889, 7_432_592_416, 1_760


def values(shape):
    n = 1
    for axis in shape:
        n *= axis
    return n


def test_layer_has_the_names_dtypes_and_shapes_of_its_census(release_config, census):
    rows = {name.replace(WITHIN, ALONE, 1): row for name, row in census("glm-5.3-flash-bf16").items()}
    assert (len(rows), sum(values(shape) for _, shape in rows.values())) == (N_BF16, N_VALUES)
    assert described(release_config(CONFIG)) == rows


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_census_is_what_transformers_classes_have(kind):
    spec = importlib.util.spec_from_file_location("make_glm5_next", CENSUS / "make_glm5_next.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert (CENSUS / f"glm-5.3-flash-{kind}.tsv").read_text() == make.census(fp8=kind == "fp8")


def test_release_in_fp8_is_read_below_its_wrapper_to_the_last_tensor(census, census_folder):
    assert len(census("glm-5.3-flash-fp8")) == N_FP8
    source = open_checkpoint(str(census_folder("glm-5.3-flash-fp8", CONFIG)))
    layer = stored_layer(source, family_of(source.config))
    assert (layer.layer, layer.n_experts, layer.dropped) == (45, 288, ())
    held = [ref.name for module in layer.modules.values() for ref in module.parts.values()]
    held += [ref.name for ref in layer.plain.values()]
    assert sorted(held) == sorted(name.replace(WITHIN, ALONE, 1) for name in census("glm-5.3-flash-fp8"))


def test_a_tensor_that_is_there_with_and_without_its_wrapper_is_refused(tmp_path):
    names = (f"{WITHIN}layers.45.enorm.weight", f"{ALONE}layers.45.enorm.weight")
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MtpforgeError, match=f"it holds the tensor twice, once below `{WITHIN}`"):
        open_checkpoint(str(tmp_path)).locate(names[:1])
    raw = json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}).encode()
    with pytest.raises(MtpforgeError, match=f"it lists `{ALONE}layers.45.enorm.weight` too, which is the same tensor"):
        index(raw)


@pytest.mark.parametrize("change", [
    lambda config: config,
    lambda config: config["text_config"],
    lambda config: {**config["text_config"], "model_type": "glm5_next"},
    lambda config: {**config, "model_type": "another_wrapper"},
], ids=["published", "alone", "flat", "wrapped anew"])  # fmt: skip
def test_language_model_is_found_however_its_config_is_wrapped(release_config, change):
    config = change(release_config(CONFIG))
    family = family_of(config)
    assert (family.name, family.layer(config), family.n_experts(config)) == ("glm5_next", 45, 288)
