"""Files, index and config of a good draft changed: the engine would load it, `verify` must name it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from drafts import Tensors, changed, copy_without_manifest, failed, reconfigured, weight_file
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("both_ways")
P = "model.layers.3."


def last_bit_of_a_dense_weight(tensors: Tensors) -> None:
    tensors[P + "eh_proj.weight"].view(torch.int16)[7, 7] ^= 1


def gate_and_up_of_an_expert(tensors: Tensors) -> None:
    for suffix in ("weight_packed", "weight_scale", "weight_zero_point"):
        one, other = (f"{P}mlp.experts.5.{projection}_proj.{suffix}" for projection in ("gate", "up"))
        tensors[one], tensors[other] = tensors[other], tensors[one]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "key",
    [
        "moe_router_dtype",
        "scoring_func",
        "topk_method",
        "num_experts_per_tok",
        "rope_parameters",
        "indexer_rope_interleave",
        "index_topk",
        "first_k_dense_replace",
        "n_routed_experts",
    ],
)
def test_a_field_that_is_missing_from_the_config(made, tmp_path, key):
    pair = made("int4")

    def remove(config: dict) -> None:
        del config[key]
        if key == "n_routed_experts":
            config.pop("num_experts", None)

    assert key in failed(pair.verify(reconfigured(pair.draft, tmp_path / "draft", remove)))["config"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("moe_router_dtype", "bfloat16"),
        ("scoring_func", "softmax"),
        ("routed_scaling_factor", 1.0),
        ("norm_topk_prob", False),
        ("n_group", 2),
        ("topk_group", 2),
        ("rms_norm_eps", 1e-6),
        ("num_experts_per_tok", 2),
        ("rope_parameters", {"rope_theta": 500, "rope_type": "default"}),
        ("indexer_rope_interleave", False),
        ("index_topk", 64),
        ("num_experts", 12),
        ("n_routed_experts", 12),
    ],
)
def test_a_field_with_another_value_than_the_targets(made, tmp_path, key, value):
    pair = made("int4")
    draft = reconfigured(pair.draft, tmp_path / "draft", lambda config: config.update({key: value}))
    assert key in failed(pair.verify(draft))["config"]


def test_a_tensor_in_two_files(made, tmp_path):
    pair = made("int4")
    draft = tmp_path / "draft"
    copy_without_manifest(pair.draft, draft)
    name = f"{P}enorm.weight"
    save_file({name: load_file(weight_file(draft))[name]}, draft / "older.safetensors")
    assert name in failed(pair.verify(draft))["files"]


def test_a_file_that_the_index_does_not_name(made, tmp_path):
    pair = made("int4")
    draft = tmp_path / "draft"
    copy_without_manifest(pair.draft, draft)
    save_file({f"{P}extra.weight": torch.ones(4)}, draft / "extra.safetensors")
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(load_file(weight_file(pair.draft)), weight_file(pair.draft).name),
    }
    (draft / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "1 tensors lie outside the index" in failed(pair.verify(draft))["files"]


def test_an_index_that_names_the_targets_shards(made, tmp_path):
    pair = made("int4")
    draft = tmp_path / "draft"
    copy_without_manifest(pair.draft, draft)
    weights = dict.fromkeys(load_file(weight_file(draft)), weight_file(draft).name)
    body = {
        "metadata": {},
        "weight_map": weights | {"model.layers.0.input_layernorm.weight": "model-00001.safetensors"},
    }
    (draft / "model.safetensors.index.json").write_text(json.dumps(body))
    assert "model-00001.safetensors" in failed(pair.verify(draft))["files"]


def test_a_file_that_is_cut_short(made, tmp_path):
    pair = made("int4")
    draft = tmp_path / "draft"
    copy_without_manifest(pair.draft, draft)
    file = weight_file(draft)
    file.write_bytes(file.read_bytes()[:-100])
    assert failed(pair.verify(draft)).keys() == {"files"}


def test_a_tensor_that_changed_since_the_manifest_was_written(made, tmp_path):
    pair = made("int4")
    draft = changed(pair.draft, tmp_path / "draft", last_bit_of_a_dense_weight)
    shutil.copy(pair.draft / "mtpforge.json", draft)
    found = failed(pair.verify(draft, with_source=False))
    assert found == {"manifest": f"1 tensors changed since: {P}eh_proj.weight"}


def test_without_a_source_it_says_what_could_not_be_seen(made, tmp_path):
    pair = made("int4")
    draft = changed(pair.draft, tmp_path / "draft", gate_and_up_of_an_expert)
    report = pair.verify(draft, with_source=False)
    assert failed(report) == {}
    (values,) = [check for check in report.checks if check.name == "values"]
    assert (values.verdict, "gate and up swapped" in values.detail) == ("not checked", True)
