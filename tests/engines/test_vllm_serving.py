from __future__ import annotations

import json

import pytest

from mtpforge import scheme as schemes
from mtpforge.engines import ENGINES, Serving
from mtpforge.engines.vllm.draft_classes import draft_class
from mtpforge.families import family_of
from mtpforge.tensors import Spec

VLLM = ENGINES["vllm"]
BF16 = schemes.load("bf16")
FAMILY = family_of({"model_type": "glm_moe_dsa"})


@pytest.fixture
def refused(release_config):
    """Preset, ranks -> the dimensions that do not divide, for GLM-5.2."""

    def ask(preset, ranks, *, expert_parallel=False, **changed):
        config = release_config("target-bf16") | changed
        serving = Serving(tensor_parallel=ranks, expert_parallel=expert_parallel)
        return VLLM.serving_traps(family_of(config), config, schemes.load(preset), serving)

    return ask


@pytest.mark.parametrize("preset", schemes.names())
@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_published_sizes_divide_over_all_usual_ranks(preset, ranks, refused):
    assert refused(preset, ranks) == ()


def test_blocks_of_fp8_end_at_16_ranks(refused):
    found = refused("fp8-block128", 32)
    assert {t.id for t in found} == {"not-divisible"}
    assert {t.message.split("`")[1] for t in found} == {
        f"mlp.{kind}.{p}_proj" for kind in ("experts.*", "shared_experts") for p in ("gate", "up", "down")
    }


def test_groups_of_128_end_at_16_ranks_groups_of_32_go_on(refused):
    assert {t.message.split("`")[1] for t in refused("int4-g128-sym", 32)} == {
        "mlp.experts.*.down_proj",
        "mlp.shared_experts.down_proj",
    }
    assert refused("int4-g32-asym", 32) == ()


def test_expert_parallelism_leaves_whole_experts(refused):
    found = refused("fp8-block128", 32, expert_parallel=True)
    assert {t.message.split("`")[1] for t in found} == {f"mlp.shared_experts.{p}_proj" for p in ("gate", "up", "down")}


def test_heads_must_divide(refused):
    (trap,) = refused("bf16", 6)
    assert (trap.id, trap.fix) == ("heads-not-divisible", "`--tp 4`")


def test_packed_zero_points_stay_whole(refused):
    found = refused("int4-g32-asym", 2, moe_intermediate_size=72)
    gate = [t for t in found if "experts.*.gate_proj" in t.message]
    assert "words of 32 bits" in gate[0].message


@pytest.mark.parametrize(
    ("serving", "trap"),
    [(Serving(0), "tensor-parallel-size"), (Serving(1, speculative_tokens=0), "speculative-tokens")],
)
def test_counts_below_one_are_refused(serving, trap, release_config):
    config = release_config("target-bf16")
    (found,) = VLLM.serving_traps(family_of(config), config, schemes.load("bf16"), serving)
    assert found.id == trap


def test_memory_of_a_rank_counts_replicated_tensors_whole():
    specs = {
        "model.layers.78.eh_proj.weight": Spec("BF16", (8, 8)),
        "model.layers.78.self_attn.q_a_proj.weight": Spec("BF16", (8, 8)),
        "model.layers.78.self_attn.o_proj.weight_packed": Spec("I32", (8, 8)),
        "model.layers.78.mlp.experts.3.up_proj.weight": Spec("U8", (8, 8)),
    }
    assert VLLM.memory(FAMILY, {}, specs, Serving()) == 128 + 128 + 256 + 64
    assert VLLM.memory(FAMILY, {}, specs, Serving(tensor_parallel=4)) == 128 + 128 + 64 + 16


def test_command_names_target_revision_draft_and_what_the_pair_needs(release_config, target_of, tmp_path):
    target = target_of(release_config("target-awq-int4-no-nextn-field"), location="org/glm", revision="431c1cd2")
    draft = tmp_path / "draft"
    command = VLLM.serve(target, str(draft), Serving(8, expert_parallel=True, speculative_tokens=2), BF16).argv
    assert command[:6] == ["vllm", "serve", "org/glm", "--revision", "431c1cd2", "--speculative-config"]
    assert json.loads(command[6]) == {"model": str(draft), "method": "mtp", "num_speculative_tokens": 2}
    assert command[7:] == [
        "--hf-overrides",
        '{"num_nextn_predict_layers": 1}',
        "--tensor-parallel-size",
        "8",
        "--enable-expert-parallel",
    ]


def test_plain_pair_needs_no_flags_and_gets_an_absolute_draft(release_config, target_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = VLLM.serve(
        target_of(release_config("target-bf16"), location="/models/glm"), "out/draft", Serving(), BF16
    ).argv
    assert command[:4] == ["vllm", "serve", "/models/glm", "--speculative-config"]
    assert json.loads(command[4])["model"] == str(tmp_path / "out" / "draft")
    assert len(command) == 5


@pytest.mark.parametrize("path", ["/m/EAGLE3-glm", "/m/eagle-glm/draft", "/DFlash/draft", "/m/dspark"])
def test_path_that_names_another_method_is_refused(path):
    (trap,) = VLLM.path_traps(path)
    assert (trap.id, trap.severity, trap.where) == ("path-names-method", "error", path)


@pytest.mark.parametrize("path", ["glm.mtp.int4", "a.b"])
def test_path_that_looks_like_a_python_class_is_refused(path):
    (trap,) = VLLM.path_traps(path)
    assert trap.fix == f"`./{path}`, or the absolute path"


@pytest.mark.parametrize("path", ["/m/GLM-5.2-MTP", "./glm.mtp", "GLM-5.2-MTP", "eagle/draft", "draft"])
def test_ordinary_paths_pass(path):
    assert VLLM.path_traps(path) == ()


def test_a_block_cut_short_is_refused_only_where_another_matrix_begins_behind_it(refused):
    """At one rank: fp8_utils.py (0.33.0) looks at merged matrices but their last, and at gate and up of experts."""
    found = refused("fp8-block128", 1, moe_intermediate_size=2000)
    assert {t.message.split("`")[1] for t in found} == {
        "mlp.experts.*.gate_proj",
        "mlp.experts.*.up_proj",
        "mlp.shared_experts.gate_proj",
    }
    assert refused("fp8-block128", 1, kv_lora_rank=500, qk_nope_head_dim=190, v_head_dim=250) == ()


def test_axes_are_cut_as_the_parallel_layers_of_vllm_cut_them():
    """Column-parallel layers split their rows, row-parallel ones their columns (model_executor/layers/linear.py)."""
    known = draft_class(FAMILY)
    axes = {"ColumnParallelLinear": "out", "MergedColumnParallelLinear": "out", "RowParallelLinear": "in"}
    parts = {part: fused for fused, members in known.packed.items() for part in members}
    single = {p: known.matrices.get(p, known.matrices.get(parts.get(p, ""))) for p in known.split}
    assert {p: axes[kind] for p, kind in single.items()} == known.split
    assert {"q_b_proj", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} == known.split.keys()
