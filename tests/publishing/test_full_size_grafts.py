"""Grafts of published layers at full size, from headers and configs alone."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import full_size
import pytest
from safetensors.torch import save_file
from torch import zeros

from mtpforge.engines import ENGINES
from mtpforge.engines.expected import expected
from mtpforge.families import family_of
from mtpforge.publishing import grafting
from mtpforge.publishing.graft import Asked

DATA = Path(__file__).parents[1] / "data"
VLLM, FAMILY = ENGINES["vllm"], family_of({"model_type": "glm_moe_dsa"})
BIAS = [n * 37 % 256 for n in range(256)]
# layer, its config, target, tensors of the layer, scheme
GRAFTS = (
    ("bf16-zai-org", "target-bf16", "target-w4a16-mtp-canada-quant", 791, "bf16"),
    pytest.param("bf16-zai-org", "target-bf16", "target-nvfp4-nvidia", 791, "bf16", marks=pytest.mark.slow),
    ("fp8-zai-org", "target-fp8", "target-awq-int4-fp8-mtp-graft", 1569, "fp8-block128"),
    ("int8-channel-quanttrio", "target-int4-int8mix-quanttrio", "target-int8mix-nvfp4-festr2", 2343, "int8-channel"),
    ("nvfp4-experts-lukealonso", "target-nvfp4-lukealonso", "target-nvfp4-nvidia", 3095, "nvfp4"),
    pytest.param(
        "int4-g32-asym-cosmicraisins",
        "draft-int4-cosmicraisins",
        "target-awq-int4-ignore-to-77",
        3122,
        "int4-g32-asym",
        marks=pytest.mark.slow,
    ),
    ("int4-g32-asym-cosmicraisins", "draft-int4-cosmicraisins", "target-awq-int4-mtp-ignored", 3122, "int4-g32-asym"),
)


@pytest.fixture(scope="module")
def target_folder(tmp_path_factory, release_config):
    """A release of which one tensor is at hand: what matters of it is config.json."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        save_file({"model.norm.weight": zeros(1)}, folder / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps(release_config(name)))
        return folder

    return make


@pytest.mark.parametrize(("layer", "of", "target", "n", "scheme"), GRAFTS)
def test_published_layer_goes_in_as_it_is_stored(
    layer, of, target, n, scheme, census_folder, target_folder, census, tmp_path
):
    graft = grafting.decide(Asked(layer=census_folder(layer, of), target=target_folder(target), out=tmp_path / "graft"))
    assert (graft.why, graft.addition.scheme) == ("", scheme)
    held = {name: (spec.dtype, spec.shape) for name, spec in graft.addition.tensors.items()}
    stored = census(layer)
    if scheme == "fp8-block128":
        stored = {n if ".wk." in n else n.replace("weight_scale_inv", "weight_scale"): s for n, s in stored.items()}
    assert (len(held), held) == (n, stored)
    told = told_of(graft, release_of(target))
    assert "mtp_quantization_config" not in told.config
    built = VLLM.demands(told, None, FAMILY)
    wanted = expected(built, FAMILY, told.config, 78, 256)
    decoded = {name for name in held if ".indexer.wk." in name}
    assert held.keys() - decoded == wanted.keys() - decoded


def release_of(name):
    return json.loads((DATA / "configs" / f"{name}.config.json").read_text())


def told_of(graft, config):
    """The target by the graft's config alone."""
    patched = graft.addition.config.applied(config)

    class Told:
        names, label, location, revision, is_restated = frozenset(), "t", "t", "", False
        config, quantization = patched, patched.get("quantization_config") or {}

    return Told


@pytest.fixture
def bf16_release(census_folder):
    """The BF16 layer in a whole checkpoint, no draft; its correction bias goes up and down, 37 steps at a time."""
    folder = census_folder("bf16-zai-org", "target-bf16")
    save_file({"model.norm.weight": zeros(1)}, folder / "others.safetensors")
    with (folder / "model.safetensors").open("r+b") as file:
        start = int.from_bytes(file.read(8), "little")
        places = json.loads(file.read(start))["model.layers.78.mlp.gate.e_score_correction_bias"]["data_offsets"]
        file.seek(8 + start + places[0])
        file.write(struct.pack("<256f", *BIAS))
    return folder


@pytest.mark.slow
def test_layer_of_256_experts_is_pruned_for_a_target_of_218(bf16_release, target_folder, census, tmp_path):
    """INT4 in 3,122 tensors for 256: of every expert that goes, three matrices of four tensors; the router is cut."""
    target = target_folder("target-awq-int4-218-experts")
    graft = grafting.decide(Asked(layer=bf16_release, target=target, out=tmp_path / "graft"))
    assert graft.why == "256 experts, the target serves 218"
    plan = graft.layer.job.plan
    assert (plan.n_experts, list(plan.kept_experts)) == (218, [n for n in range(256) if BIAS[n] < 218])
    assert graft.addition.scheme == "int4-g32-asym"
    held = {name: (spec.dtype, spec.shape) for name, spec in graft.addition.tensors.items()}
    wanted = {}
    for name, (dtype, shape) in census("int4-g32-asym-cosmicraisins").items():
        expert = re.search(r"[.]experts[.](\d+)[.]", name)
        if expert is None or int(expert[1]) < 218:
            wanted[name] = dtype, (218, *shape[1:]) if ".mlp.gate." in name else shape
    assert (len(held), held) == (3122 - (256 - 218) * 3 * 4, wanted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_layer_of_bf16_becomes_the_nvfp4_one_of_lukealonso(bf16_release, release_config, census, tmp_path):
    """His way, from the unquantized layer: input scales are those of the target's last main layer."""
    published = census("nvfp4-experts-lukealonso")
    last = {n.replace("layers.78.", "layers.77."): spec for n, spec in published.items() if ".mlp.experts." in n}
    config = release_config("target-nvfp4-nvidia")
    target = full_size.write(tmp_path / "target", config, last, lambda _: "model-00001-of-00001.safetensors")
    asked = Asked(layer=bf16_release, target=target, out=tmp_path / "graft", scheme="nvfp4")
    graft = grafting.decide(asked)
    held = {name: (spec.dtype, spec.shape) for name, spec in graft.addition.tensors.items()}
    assert (len(held), held, graft.addition.scheme) == (3095, published, "nvfp4")
    scales = [move for step in graft.layer.job.plan.steps for move in step.input_scales]
    assert {read.name for move in scales for read in move.reads} == {n for n in last if n.endswith(".input_scale")}
    told = told_of(graft, config)
    assert expected(VLLM.demands(told, None, FAMILY), FAMILY, told.config, 78, 256).keys() == published.keys()
