"""Drafts of GLM-4.7-Flash: vLLM's own loader takes what is built for it, and verify fails what another model has."""

from __future__ import annotations

import json
import os

import glm4_moe
import glm4_moe_lite
import pytest
from drafts import failed, reconfigured
from glm4_moe_lite import N_EXPERTS, P

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
LINEARS = 5 + 3  # attention, shared experts
PLAIN = 2 + 7 + 1  # eh_proj and router; norms; correction bias
# Target's block -> parts of an expert's matrix, parts of another linear's.
BLOCKS = {
    "unquantized": (None, 1, 1),
    "INT4": (glm4_moe.int4(), 3, 3),
    "experts INT4": (glm4_moe.int4("re:.*self_attn.*", "re:.*shared_experts.*"), 3, 1),
    "FP8 in blocks": (glm4_moe.fp8_blocks(), 2, 2),
}


def n_tensors(of_expert, of_linear, n_experts=N_EXPERTS):
    """As many as a draft holds, by hand."""
    return 3 * n_experts * of_expert + LINEARS * of_linear + PLAIN


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return glm4_moe_lite.write(tmp_path_factory.mktemp("lite") / "source")


@pytest.fixture
def built(source, tmp_path):
    def make(block, kept=None):
        beside = glm4_moe.target(tmp_path / "target", source, block)
        stored, served = open_checkpoint(str(source)), open_checkpoint(str(beside))
        made = plan(stored, served, kept=kept)
        build(made, {"source": stored, "target": served}, tmp_path / "draft", check="off")
        return tmp_path / "draft", served, stored

    return make


@pytest.mark.parametrize(("block", "of_expert", "of_linear"), BLOCKS.values(), ids=BLOCKS)
def test_draft_passes_verify_and_states_no_fact_of_another_class(built, block, of_expert, of_linear):
    draft, served, stored = built(block)
    report = verify(draft, served, stored)
    assert report.ok, failed(report)
    names = open_checkpoint(str(draft)).names
    assert len(names) == n_tensors(of_expert, of_linear)
    assert not [name for name in names if "embed_tokens" in name or "shared_head.head" in name]
    config = json.loads((draft / "config.json").read_text())
    assert config["architectures"] == ["Glm4MoeLiteForCausalLM"]
    assert not {"scoring_func", "topk_method", "moe_router_dtype", "index_topk", "head_dim"} & config.keys()


@pytest.mark.engine
@in_vllm
@pytest.mark.parametrize(("block", "of_expert", "of_linear"), BLOCKS.values(), ids=BLOCKS)
def test_vllm_takes_the_draft(built, block, of_expert, of_linear):
    draft, served, _ = built(block)
    report = installed.check(draft, served, python=PYTHON)
    assert report.ok, report.facts["errors"]
    assert str(report.facts["class"]).endswith("glm4_moe_lite_mtp.Glm4MoeLiteMTP")
    assert report.facts["tensors"] == n_tensors(of_expert, of_linear)


@pytest.mark.engine
@in_vllm
def test_vllm_takes_it_on_four_ranks(built):
    draft, served, _ = built(glm4_moe.int4())
    family, engine = family_of(served.config), ENGINES["vllm"]
    assert engine.serving_traps(family, served.config, engine.demands(served, None, family), Serving(4)) == ()
    report = installed.check(draft, served, python=PYTHON, tensor_parallel=4)
    assert report.ok, report.facts["errors"]


@pytest.mark.engine
@in_vllm
def test_vllm_sizes_this_layer_by_the_draft(built):
    draft, served, stored = built(glm4_moe.int4(), kept=(0, 1, 2, 4, 7))
    assert verify(draft, served, stored).ok
    report = installed.check(draft, served, python=PYTHON)
    assert report.ok, report.facts["errors"]
    assert report.facts["tensors"] == n_tensors(3, 3, n_experts=5)


FOREIGN = {
    "scores by softmax": (
        lambda config: config.update(scoring_func="softmax"),
        '`scoring_func` is "softmax", it must be "sigmoid"; vLLM would not notice',
    ),
    "weights of another sum": (
        lambda config: config.update(routed_scaling_factor=2.5),
        "`routed_scaling_factor` is 2.5, it must be 1.8; vLLM would not notice",
    ),
    "half a head turned": (
        lambda config: config.update(partial_rotary_factor=0.5),
        '"partial_rotary_factor": 0.5',
    ),
    "the larger sibling's type": (
        lambda config: config.update(model_type="glm4_moe"),
        '`model_type` is "glm4_moe", it must be',
    ),
}


@pytest.mark.parametrize(("change", "words"), FOREIGN.values(), ids=FOREIGN)
def test_config_of_another_model_fails_verify(built, tmp_path, change, words):
    draft, served, stored = built(glm4_moe.int4())
    found = failed(verify(reconfigured(draft, tmp_path / "changed", change), served, stored))
    assert found.keys() == {"config"}
    assert words in found["config"]


@pytest.fixture
def silent(built, tmp_path):
    """A draft whose config leaves unsaid what vLLM's config class has as defaults, and miscounts the layers."""
    draft, *pair = built(glm4_moe.int4())
    unsaid = ("routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob", "rms_norm_eps", "num_experts_per_tok")

    def change(config):
        config["num_hidden_layers"] = 3
        for key in unsaid:
            del config[key]

    return reconfigured(draft, tmp_path / "silent", change), *pair


def test_what_vllm_does_not_read_of_a_draft_may_be_said_or_not(silent):
    report = verify(*silent)
    assert report.ok, failed(report)


@pytest.mark.engine
@in_vllm
def test_vllm_has_these_defaults_and_does_not_read_the_number_of_layers(silent):
    draft, served, _ = silent
    report = installed.check(draft, served, python=PYTHON)
    assert report.ok, report.facts["errors"]


def test_half_of_the_fused_attention_left_out_is_refused(source, tmp_path):
    beside = glm4_moe.target(tmp_path / "target", source, glm4_moe.int4(f"{P}self_attn.q_a_proj"))
    served = open_checkpoint(str(beside))
    with pytest.raises(MtpforgeError, match="only q_a_proj of `fused_qkv_a_proj` unquantized"):
        ENGINES["vllm"].demands(served, None, family_of(served.config))
