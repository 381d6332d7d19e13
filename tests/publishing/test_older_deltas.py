"""Deltas as mtpforge made them before grafts excluded the draft's head, beside a target in NVFP4 of ModelOpt."""

from __future__ import annotations

import json

import pytest
from grafted import LAYER
from safetensors import safe_open

import mtpforge
from mtpforge.errors import MtpforgeError

ROUTER = {"moe_router_dtype": "float32"}
HEAD = "model.layers.3.head"
RESTATED = [  # the block's list where a BF16 layer goes in: every matrix of it is dense
    "lm_head",
    "model.embed_tokens",
    "model.layers.0*",
    "model.layers.3.eh_proj*",
    "model.layers.3.mlp.gate*",
    "model.layers.3.self_attn.indexer*",
    "model.layers.[1-3].mlp.shared_experts*",
    "model.layers.[1-3].self_attn*",
    "model.layers.3.eh_proj",
    "model.layers.3.self_attn.q_a_proj",
    "model.layers.3.self_attn.kv_a_proj_with_mqa",
    "model.layers.3.self_attn.q_b_proj",
    "model.layers.3.self_attn.kv_b_proj",
    "model.layers.3.self_attn.o_proj",
    "model.layers.3.self_attn.indexer.wq_b",
    "model.layers.3.self_attn.indexer.wk",
    "model.layers.3.self_attn.indexer.weights_proj",
    "model.layers.3.mlp.gate",
    "model.layers.3.mlp.shared_experts.gate_proj",
    "model.layers.3.mlp.shared_experts.up_proj",
    "model.layers.3.mlp.shared_experts.down_proj",
    "model.layers.3.mlp.experts",
]


def own_block(target):
    return json.loads((target / "config.json").read_text())["quantization_config"]


def patched(delta, config):
    """The delta with this patch of config.json in the place of its own."""
    path = delta / "mtpforge-delta.json"
    document = json.loads(path.read_text())
    assert document["config"] != config
    side = document["side_file"]
    if side is not None:  # which did not exclude it either
        side["set"]["quantization"]["exclude_modules"].remove(HEAD)
    path.write_text(json.dumps(document | {"config": config, "side_file": side}))
    return delta


@pytest.mark.parametrize("layer", ["nvfp4", "bf16"], ids=["the target's own block", "a block restated"])
def test_delta_without_the_head_in_its_block_is_applied_with_it(tinyglm, tmp_path, layer):
    target = tinyglm("nvfp4")
    delta = mtpforge.delta(tinyglm(layer), target, out=tmp_path / "delta").path
    block = own_block(target) | ({"ignore": RESTATED} if layer == "bf16" else {})
    changed = {"quantization_config": block} if layer == "bf16" else {}
    patched(delta, {"set": changed | ROUTER, "remove": []})
    made = mtpforge.graft(None, target, delta=delta, out=tmp_path / "graft", link="sym")
    assert made.report.ok
    stated = own_block(made.path)
    assert stated == block | {"ignore": [*block["ignore"], HEAD]}
    assert json.loads((made.path / "mtpforge-graft.json").read_text())["config"]["set"] == {
        "quantization_config": stated,
        **ROUTER,
    }
    side = json.loads((made.path / "hf_quant_config.json").read_text())["quantization"]["exclude_modules"]
    assert side[-1] == HEAD
    held = {}
    for folder in (delta, made.path):
        with safe_open(folder / "model-mtp.safetensors", "np") as file:
            held[folder] = set(file.keys())
    assert held[delta] == held[made.path]
    assert all(name.startswith(LAYER) for name in held[delta])
    assert mtpforge.verify(made.path, made.path).ok


@pytest.mark.parametrize("odd", [{"auto_map": {"AutoModelForCausalLM": "evil/repo--m.X"}}, {"rope_theta": 7}])
def test_a_key_that_no_graft_changes_is_refused_in_an_older_delta_too(tinyglm, tmp_path, odd):
    target = tinyglm("nvfp4")
    delta = mtpforge.delta(tinyglm("nvfp4"), target, out=tmp_path / "delta").path
    patched(delta, {"set": ROUTER | odd, "remove": []})
    with pytest.raises(MtpforgeError, match="this delta is none that a graft makes") as refused:
        mtpforge.graft(None, target, delta=delta, out=tmp_path / "graft")
    assert refused.value.why == "it changes keys of config.json that no graft changes"
    assert not (tmp_path / "graft").exists()


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("ignore", 5, "`quantization_config.ignore` of config.json must be a list of strings: it is 5"),
        ("quant_method", ["x"], "`quantization_config.quant_method` of config.json must be a string"),
    ],
)
def test_a_block_of_wrong_types_is_said_to_be_the_delta_s(tinyglm, tmp_path, key, value, why):
    target = tinyglm("nvfp4")
    delta = mtpforge.delta(tinyglm("nvfp4"), target, out=tmp_path / "delta").path
    block = own_block(target) | {key: value}
    patched(delta, {"set": ROUTER | {"quantization_config": block}, "remove": []})
    with pytest.raises(MtpforgeError, match="this delta is none that a graft makes") as refused:
        mtpforge.graft(None, target, delta=delta, out=tmp_path / "graft")
    assert refused.value.where == str(delta / "mtpforge-delta.json")
    assert refused.value.why.startswith(f"its patch: {why}")
    assert not (tmp_path / "graft").exists()


@pytest.mark.parametrize("side", [{"quantization": 5}, {"quantization": {"exclude_modules": 5}}, {"producer": []}])
def test_a_side_file_of_wrong_types_goes(tinyglm, tmp_path, side):
    target = tinyglm("nvfp4")
    delta = mtpforge.delta(tinyglm("nvfp4"), target, out=tmp_path / "delta").path
    path = delta / "mtpforge-delta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"side_file": {"set": side, "remove": []}}))
    made = mtpforge.graft(None, target, delta=delta, out=tmp_path / "graft")
    assert not (made.path / "hf_quant_config.json").exists()
    assert own_block(made.path)["ignore"][-1] == HEAD


@pytest.mark.parametrize(
    "config",
    [{"set": ROUTER, "remove": ["quantization_config"]}, {"set": ROUTER | {"quantization_config": "x"}, "remove": []}],
    ids=["taken away", "a word"],
)
def test_a_delta_that_leaves_no_block_is_refused(tinyglm, tmp_path, config):
    target = tinyglm("nvfp4")
    delta = mtpforge.delta(tinyglm("nvfp4"), target, out=tmp_path / "delta").path
    patched(delta, config)
    with pytest.raises(MtpforgeError, match="this delta is none that a graft makes"):
        mtpforge.graft(None, target, delta=delta, out=tmp_path / "graft")
