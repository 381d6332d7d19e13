"""GLM-4.x drafts: vLLM's own loader takes what is built for it, and verify fails what belongs to another model."""

from __future__ import annotations

import json
import os

import glm4_moe
import pytest
from drafts import failed, reconfigured

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.engines.engine import Serving
from mtpforge.engines.vllm import installed
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.planning import plan
from mtpforge.verifying import verify

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
in_vllm = pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM")
P = f"model.layers.{glm4_moe.LAYER}."
LINEARS = 4 + 3  # attention, shared experts
EXPERTS = 3 * glm4_moe.N_EXPERTS
DENSE = EXPERTS + LINEARS + 2 + 5 + 3 + 2 + 1  # eh_proj and router; norms; biases; q_norm and k_norm; correction bias
# Target's block -> matrices that a draft beside it stores quantized, and tensors that one of them is.
BLOCKS = {
    "unquantized": (None, 0, 1),
    "all INT4": (glm4_moe.int4(), EXPERTS + LINEARS, 3),
    "experts INT4": (glm4_moe.int4("re:.*self_attn.*", "re:.*shared_experts.*"), EXPERTS, 3),
    "attention left out by parts": (glm4_moe.int4(*(f"{P}self_attn.{p}_proj" for p in "qkvo")), EXPERTS + 3, 3),
    "q, k and v INT4 alone": (glm4_moe.int4("re:.*o_proj", "re:.*mlp.*"), 3, 3),
    "all FP8 by channel": (glm4_moe.channels("float"), EXPERTS + LINEARS, 2),
    "all INT8 by channel": (glm4_moe.channels("int"), EXPERTS + LINEARS, 2),
    "all FP8 in blocks": (glm4_moe.fp8_blocks(), EXPERTS + LINEARS, 2),
}
AIR = {"use_qk_norm": False, "attention_bias": False, "routed_scaling_factor": 1.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return glm4_moe.write(tmp_path_factory.mktemp("glm4") / "source")


@pytest.fixture
def built(source, tmp_path):
    def make(block, origin=source):
        beside = glm4_moe.target(tmp_path / "target", origin, block)
        stored, served = open_checkpoint(str(origin)), open_checkpoint(str(beside))
        build(plan(stored, served), {"source": stored, "target": served}, tmp_path / "draft", check="off")
        return tmp_path / "draft", served, stored

    return make


@pytest.mark.parametrize(("block", "n_quantized", "n_parts"), BLOCKS.values(), ids=BLOCKS)
def test_draft_passes_verify_and_states_no_fact_of_another_class(built, block, n_quantized, n_parts):
    draft, served, stored = built(block)
    report = verify(draft, served, stored)
    assert report.ok, failed(report)
    assert [check.verdict for check in report.checks if check.name == "quantization block"] == ["passed"]
    config = json.loads((draft / "config.json").read_text())
    mapping = config.get("quantization_config", {}).get("packed_modules_mapping")
    fused = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    assert mapping == (fused if block else None)
    assert not {"scoring_func", "topk_method", "moe_router_dtype", "index_topk", "q_lora_rank"} & config.keys()
    assert len(open_checkpoint(str(draft)).names) == DENSE + n_quantized * (n_parts - 1)


@pytest.mark.engine
@in_vllm
@pytest.mark.parametrize(("block", "n_quantized", "n_parts"), BLOCKS.values(), ids=BLOCKS)
def test_vllm_takes_the_draft(built, block, n_quantized, n_parts):
    draft, served, _ = built(block)
    report = installed.check(draft, served, python=PYTHON)
    assert report.ok, report.facts["errors"]
    assert str(report.facts["class"]).endswith(".Glm4MoeMTP")
    assert report.facts["tensors"] == DENSE + n_quantized * (n_parts - 1)


@pytest.mark.engine
@in_vllm
def test_vllm_takes_a_draft_of_airs_shape(built, tmp_path):
    draft, served, _ = built(glm4_moe.int4(), glm4_moe.write(tmp_path / "air", **AIR))
    report = installed.check(draft, served, python=PYTHON)
    assert report.ok, report.facts["errors"]
    assert report.facts["tensors"] == DENSE - 3 - 2 + 2 * (EXPERTS + LINEARS)  # without biases and norms of heads


@pytest.mark.engine
@in_vllm
def test_vllm_takes_it_on_more_ranks_than_there_are_key_heads(built):
    draft, served, _ = built(glm4_moe.int4())
    assert glm4_moe.SIZES["num_key_value_heads"] < 4
    family, engine = family_of(served.config), ENGINES["vllm"]
    scheme = engine.demands(served, None, family)
    assert engine.serving_traps(family, served.config, scheme, Serving(4)) == ()
    report = installed.check(draft, served, python=PYTHON, tensor_parallel=4)
    assert report.ok, report.facts["errors"]


@pytest.mark.engine
@in_vllm
def test_loader_compares_what_this_class_reads(built, tmp_path):
    draft, served, _ = built(None)
    other = reconfigured(draft, tmp_path / "other", lambda config: config.update(attention_bias=False))
    errors = installed.check(other, served, python=PYTHON).facts["errors"]
    assert errors[0].startswith("config attention_bias: draft has False, target True;")


def test_a_quantized_layer_is_read_again_with_its_biases(built, tmp_path):
    draft, _, _ = built(glm4_moe.int4())
    served = open_checkpoint(str(glm4_moe.target(tmp_path / "plain", draft, None)))
    stored = open_checkpoint(str(draft))
    build(plan(stored, served), {"source": stored, "target": served}, tmp_path / "dense", check="off")
    report = verify(tmp_path / "dense", served, stored)
    assert report.ok, failed(report)


@pytest.fixture
def pruned(source, tmp_path):
    """A draft of two experts for a target of two, that target, and the whole one."""
    whole = glm4_moe.target(tmp_path / "whole", source, None)
    few = reconfigured(whole, tmp_path / "few", lambda config: config.update(n_routed_experts=2))
    stored, served = open_checkpoint(str(source)), open_checkpoint(str(few))
    made = plan(stored, served, kept=(1, 3))
    build(made, {"source": stored, "target": served}, tmp_path / "draft", check="off")
    return tmp_path / "draft", served, open_checkpoint(str(whole))


def test_draft_of_fewer_experts_passes_beside_a_target_of_as_many_alone(pruned):
    draft, served, whole = pruned
    assert verify(draft, served).ok
    found = failed(verify(draft, whole))
    assert "the draft has 2 experts, the target 4: vLLM stops at the router, sized by the target's" in found["config"]


@pytest.mark.engine
@in_vllm
def test_vllm_sizes_this_layer_by_the_target(pruned):
    draft, served, whole = pruned
    assert installed.check(draft, served, python=PYTHON).ok
    errors = installed.check(draft, whole, python=PYTHON).facts["errors"]
    said = "Attempted to load weight (torch.Size([2])) into parameter (torch.Size([4]))"
    assert any(said in error for error in errors), errors


MLA = {"fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"], "gate_up_proj": ["gate_proj", "up_proj"]}
FOREIGN = {
    "MLA's mapping": (
        lambda config: config["quantization_config"].update(packed_modules_mapping=MLA),
        'says `fused_qkv_a_proj` is ["q_a_proj", "kv_a_proj_with_mqa"], the layer has no such; vLLM would not notice',
    ),
    "parts in another order": (
        lambda config: config["quantization_config"]["packed_modules_mapping"].update(qkv_proj=["k_proj", "q_proj"]),
        'says `qkv_proj` is ["k_proj", "q_proj"], it must be ["q_proj", "k_proj", "v_proj"]; vLLM would not notice',
    ),
    "scores by softmax": (
        lambda config: config.update(scoring_func="softmax"),
        'the draft\'s `scoring_func` is "softmax", it must be "sigmoid"; vLLM would not notice',
    ),
    "no norms of heads": (
        lambda config: config.update(use_qk_norm=False),
        "the draft's `use_qk_norm` is false, it must be true; vLLM would not notice",
    ),
    "a head that turns whole": (
        lambda config: config["rope_parameters"].update(partial_rotary_factor=1.0),
        '"partial_rotary_factor": 1.0}, it must be',
    ),
    "fewer key heads": (
        lambda config: config.update(num_key_value_heads=4),
        "the draft's `num_key_value_heads` is 4, it must be 2; vLLM would not notice",
    ),
}


@pytest.mark.parametrize(("change", "words"), FOREIGN.values(), ids=FOREIGN)
def test_config_of_another_model_fails_verify(built, tmp_path, change, words):
    draft, served, stored = built(glm4_moe.int4())
    report = verify(reconfigured(draft, tmp_path / "changed", change), served, stored)
    found = failed(report)
    assert found.keys() == {"config"}
    assert words in found["config"]


def test_rotary_share_of_a_head_counts_wherever_it_stands(built, tmp_path):
    draft, served, stored = built(glm4_moe.int4())

    def at_the_top(config, share):
        config["rope_parameters"].pop("partial_rotary_factor")
        config["partial_rotary_factor"] = share

    same = reconfigured(draft, tmp_path / "same", lambda config: at_the_top(config, 0.5))
    assert verify(same, served, stored).ok
    other = reconfigured(draft, tmp_path / "other", lambda config: at_the_top(config, 1.0))
    assert failed(verify(other, served, stored)).keys() == {"config"}


def test_what_the_class_computes_may_be_said_rightly(built, tmp_path):
    draft, served, stored = built(glm4_moe.int4())
    right = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    assert verify(reconfigured(draft, tmp_path / "said", lambda config: config.update(right)), served, stored).ok


def test_half_of_the_fused_attention_left_out_is_refused(source, tmp_path):
    beside = open_checkpoint(str(glm4_moe.target(tmp_path / "t", source, glm4_moe.int4(f"{P}self_attn.q_proj"))))
    with pytest.raises(MtpforgeError, match="only q_proj of `qkv_proj` unquantized"):
        ENGINES["vllm"].demands(beside, None, family_of(beside.config))


def test_more_ranks_than_heads_can_be_repeated_on_are_refused(source, tmp_path):
    beside = open_checkpoint(str(glm4_moe.target(tmp_path / "t", source, None)))
    family, engine = family_of(beside.config), ENGINES["vllm"]
    scheme = engine.demands(beside, None, family)
    (trap,) = engine.serving_traps(family, beside.config | {"num_key_value_heads": 3}, scheme, Serving(8))
    assert trap.message == "3 key and value heads cannot be repeated over 8 ranks"


def test_source_whose_switches_are_another_models_is_refused_by_key(source, tmp_path):
    other = open_checkpoint(str(glm4_moe.write(tmp_path / "other", use_qk_norm=False)))
    served = open_checkpoint(str(glm4_moe.target(tmp_path / "target", source, None)))
    with pytest.raises(MtpforgeError, match=r"(?m)not the same model: `use_qk_norm` False against True$"):
        plan(other, served)
