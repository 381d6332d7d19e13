"""Drafts of DeepSeek V3 and V3.2: vLLM's own loader takes what is built, and verify fails what another model has."""

from __future__ import annotations

import json
import os
from pathlib import Path

import deepseek
import glm4_moe
import pytest
import torch
from deepseek import FAMILIES, INDEXER, N_EXPERTS, N_GROUPS, P
from drafts import failed, reconfigured, weight_file
from safetensors.torch import load_file

import mtpforge
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.engines.engine import Serving
from mtpforge.engines.vllm import installed
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.planning import plan
from mtpforge.pruning.expert_choice import Wish, pruned
from mtpforge.verifying import verify

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
in_vllm = pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM")
CLASSES = {"deepseek_v3": "deepseek_mtp.DeepSeekMTP", "deepseek_v32": "deepseek_v32.nvidia.mtp.DeepseekV32MTP"}
# Linears that may be quantized: attention and shared experts; the indexer's wq_b.
LINEARS = {"deepseek_v3": 5 + 3, "deepseek_v32": 5 + 3 + 1}
# eh_proj and router; norms; correction bias; of the indexer wk, weights_proj, weight and bias of k_norm.
PLAIN = {"deepseek_v3": 2 + 7 + 1, "deepseek_v32": 2 + 7 + 1 + 4}
TARGETS = ("FP8 in blocks", "INT4", "experts INT4", "unquantized")


def block(family, target):
    left_out = ("re:.*self_attn.*", "re:.*shared_experts.*")
    blocks = {"INT4": glm4_moe.int4(), "experts INT4": glm4_moe.int4(*left_out), "unquantized": None}
    return blocks[target] if target in blocks else deepseek.fp8_block(family)


def n_tensors(family, target, source, n_experts=N_EXPERTS):
    """As many as a draft holds, by hand."""
    n_parts = {"FP8 in blocks": 2, "INT4": 3, "experts INT4": 3, "unquantized": 1}[target]
    linears = LINEARS[family] * (1 if target == "experts INT4" else n_parts)
    scale_of_wk = (family, target, source) == ("deepseek_v32", "FP8 in blocks", "FP8")
    return 3 * n_experts * n_parts + linears + PLAIN[family] + scale_of_wk


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Family and form of storage -> a whole checkpoint; both forms of a family hold the same model."""
    made = {}
    for family in FAMILIES:
        home = tmp_path_factory.mktemp(family)
        made[family, "BF16"] = deepseek.write(home / "plain", family)
        made[family, "FP8"] = deepseek.write_fp8(home / "release", home / "plain", family)
    return {key: open_checkpoint(str(folder)) for key, folder in made.items()}


@pytest.fixture
def built(stored, tmp_path):
    def make(family, target, source="FP8", wish=None):
        beside = glm4_moe.target(tmp_path / "target", Path(stored[family, source].location), block(family, target))
        origin, served = stored[family, source], open_checkpoint(str(beside))
        kept = pruned(origin, served, wish).kept if wish else None
        build(plan(origin, served, kept=kept), {"source": origin, "target": served}, tmp_path / "draft", check="off")
        return tmp_path / "draft", served, origin

    return make


@pytest.mark.sampled(3)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", ["BF16", "FP8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_draft_passes_verify_and_states_its_own_class(built, family, source, target):
    draft, served, origin = built(family, target, source)
    report = verify(draft, served, origin)
    assert report.ok, failed(report)
    names = open_checkpoint(str(draft)).names
    assert len(names) == n_tensors(family, target, source)
    assert not [name for name in names if "embed_tokens" in name or "shared_head.head" in name]
    config = json.loads((draft / "config.json").read_text())
    assert config["model_type"] == family
    assert {key: config[key] for key in ("n_group", "topk_group", "scoring_func", "topk_method")} == {
        "n_group": N_GROUPS, "topk_group": 2, "scoring_func": "sigmoid", "topk_method": "noaux_tc"
    }  # fmt: skip
    assert config["rope_scaling"] == deepseek.PUBLISHED["rope_scaling"]
    assert (INDEXER.keys() <= config.keys()) == (family == "deepseek_v32")
    assert "moe_router_dtype" not in config


@pytest.mark.parametrize("family", FAMILIES)
def test_release_is_copied_byte_for_byte_beside_itself(built, family):
    draft, _, origin = built(family, "FP8 in blocks")
    ours, theirs = load_file(weight_file(draft)), load_file(f"{origin.location}/model.safetensors")
    copies = {f"{P}embed_tokens.weight", f"{P}shared_head.head.weight"}
    assert ours.keys() == {name for name in theirs if name.startswith(P)} - copies
    assert all(ours[name].view(torch.uint8).equal(theirs[name].view(torch.uint8)) for name in ours)


def test_copies_in_the_layer_are_left_out_with_the_reason(stored):
    release = stored["deepseek_v3", "FP8"]
    left_out = {unused.name: unused.reason for unused in plan(release, release).unused}
    assert left_out == {
        f"{P}embed_tokens.weight": "the engine uses the target's embedding",
        f"{P}shared_head.head.weight": "the engine uses the target's lm_head",
    }


LOADED = [(family, target, "FP8") for family in FAMILIES for target in ("FP8 in blocks", "INT4")]
LOADED += [("deepseek_v32", "FP8 in blocks", "BF16"), ("deepseek_v3", "experts INT4", "BF16")]


@pytest.mark.engine
@in_vllm
@pytest.mark.parametrize(("family", "target", "source"), LOADED)
def test_vllm_takes_the_draft(built, family, target, source):
    draft, served, _ = built(family, target, source)
    report = installed.check(draft, served, python=PYTHON)
    assert report.ok, report.facts["errors"]
    assert str(report.facts["class"]).endswith(CLASSES[family])
    assert report.facts["tensors"] == n_tensors(family, target, source)


@pytest.mark.engine
@in_vllm
def test_vllm_takes_it_on_four_ranks(built):
    draft, served, _ = built("deepseek_v3", "INT4")
    family, engine = family_of(served.config), ENGINES["vllm"]
    assert engine.serving_traps(family, served.config, engine.demands(served, None, family), Serving(4)) == ()
    report = installed.check(draft, served, python=PYTHON, tensor_parallel=4)
    assert report.ok, report.facts["errors"]


@pytest.mark.engine
@in_vllm
@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_takes_a_draft_pruned_by_groups(built, family):
    draft, served, _ = built(family, "INT4", wish=Wish(12, "bias"))
    report = installed.check(draft, served, python=PYTHON)
    assert report.ok, report.facts["errors"]
    assert report.facts["tensors"] == n_tensors(family, "INT4", "FP8", 12)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_group_loses_as_many_experts(built, stored, family):
    draft, served, origin = built(family, "INT4", wish=Wish(12, "bias"))
    assert verify(draft, served, origin).ok
    bias = load_file(f"{origin.location}/model.safetensors")[f"{P}mlp.gate.e_score_correction_bias"]
    size = N_EXPERTS // N_GROUPS
    worst = [int(bias[first : first + size].argmax()) + first for first in range(0, N_EXPERTS, size)]
    ours = load_file(weight_file(draft))[f"{P}mlp.gate.e_score_correction_bias"]
    assert ours.tolist() == [value for n, value in enumerate(bias.tolist()) if n not in worst]


def test_counts_and_lists_that_groups_cannot_share_are_refused(stored):
    release = stored["deepseek_v3", "FP8"]
    with pytest.raises(MtpforgeError, match="14 experts cannot be shared equally by 4 groups") as caught:
        pruned(release, release, Wish(14, "bias"))
    assert caught.value.fix == "keep a multiple of 4: `--experts 12`"
    with pytest.raises(MtpforgeError, match="4 experts in 4 groups cannot fill the choice of 4 for every token"):
        pruned(release, release, Wish(4, "bias"))
    with pytest.raises(MtpforgeError, match="of the 4 groups of experts 0, 4, 4, 4 stay"):
        plan(release, release, kept=tuple(range(4, N_EXPERTS)))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("target", "scheme"), [("INT4", "bf16"), ("INT4", "int4-g128-sym"), ("unquantized", "int8-channel")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_target_is_restated_for_a_draft_of_another_scheme(stored, tmp_path, family, target, scheme):
    origin = stored[family, "FP8"]
    beside = glm4_moe.target(tmp_path / "target", Path(origin.location), block(family, target))
    draft = mtpforge.build(beside, origin, out=tmp_path / "draft", scheme=scheme, check="off").path
    report = mtpforge.verify(draft, beside, origin)
    assert report.ok, failed(report)
    assert "--hf-overrides" in mtpforge.serve_command(draft, beside)


FOREIGN = {
    "one group": (lambda config: config.update(n_group=1), "`n_group` is 1, it must be 4; vLLM would not notice"),
    "scores by softmax": (lambda config: config.pop("scoring_func"), "`scoring_func` is missing, it must be"),
    "no bias of the router": (lambda config: config.pop("topk_method"), "`topk_method` is missing, it must be"),
    "router in float32": (
        lambda config: config.update(moe_router_dtype="float32"),
        '`moe_router_dtype` is "float32", it must be ""; vLLM would not notice',
    ),
    "no yarn": (lambda config: config.pop("rope_scaling"), '"rope_type": "default"}, it must be'),
    "GLM's type": (lambda config: config.update(model_type="glm_moe_dsa"), '`model_type` is "glm_moe_dsa", it must be'),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("change", "words"), FOREIGN.values(), ids=FOREIGN)
def test_config_of_another_model_fails_verify(built, tmp_path, change, words):
    draft, served, origin = built("deepseek_v32", "INT4")
    found = failed(verify(reconfigured(draft, tmp_path / "changed", change), served, origin))
    assert found.keys() == {"config"}
    assert words in found["config"]


def test_half_of_the_fused_attention_left_out_is_refused(stored, tmp_path):
    folder = Path(stored["deepseek_v3", "BF16"].location)
    beside = glm4_moe.target(tmp_path / "target", folder, glm4_moe.int4(f"{P}self_attn.q_a_proj"))
    served = open_checkpoint(str(beside))
    with pytest.raises(MtpforgeError, match="only q_a_proj of `fused_qkv_a_proj` unquantized"):
        ENGINES["vllm"].demands(served, None, family_of(served.config))
