from __future__ import annotations

import json

import pytest

from mtpforge.engines import ENGINES, Serving
from mtpforge.families import family_of

VLLM = ENGINES["vllm"]
LAYER = "model.layers.78.eh_proj.weight"


@pytest.fixture
def whole(release_config):
    return release_config("target-bf16")


@pytest.fixture
def draft(whole, target_of):
    family = family_of(whole)
    target = target_of(whole)
    return VLLM.draft_config(target, whole, family, VLLM.demands(target, None, family), 256)


@pytest.fixture
def judged(whole, target_of):
    def judge(draft, target=None):
        target = target or whole
        family = family_of(target)
        return VLLM.draft_traps(target, draft, family, VLLM.demands(target_of(target), None, family))

    return judge


@pytest.fixture
def in_target(target_of):
    def judge(config, names=()):
        return VLLM.target_traps(target_of(config, names), family_of(config))

    return judge


def ids(traps):
    return [trap.id for trap in traps]


def test_sound_target_and_draft_fall_into_nothing(whole, draft, judged, in_target):
    assert in_target(whole, [LAYER]) == ()
    assert judged(draft) == ()


def test_absent_nextn_field_gives_the_override_to_type(whole, in_target):
    (trap,) = in_target({k: v for k, v in whole.items() if k != "num_nextn_predict_layers"})
    assert (trap.id, trap.silent) == ("nextn-field", False)
    assert trap.fix == """--hf-overrides '{"num_nextn_predict_layers": 1}'"""


def test_nextn_field_of_zero_is_silent(whole, in_target):
    (trap,) = in_target(whole | {"num_nextn_predict_layers": 0})
    assert (trap.id, trap.silent) == ("nextn-field", True)
    assert "drops every draft tensor" in trap.message


def test_nested_config_gets_a_nested_override(whole, in_target):
    text = {k: v for k, v in whole.items() if k != "num_nextn_predict_layers"}
    (trap,) = in_target({"model_type": "glm_vision", "text_config": text})
    assert trap.fix == """--hf-overrides '{"text_config": {"num_nextn_predict_layers": 1}}'"""


def test_stale_twin_in_the_target_is_told_with_what_the_headers_hold(release_config, in_target):
    names = [f"model.layers.77.mlp.experts.{e}.up_proj.weight" for e in range(168)]
    (trap,) = in_target(release_config("target-nvfp4-reap-168-stale-num-experts"), names)
    assert trap.id == "stale-num-experts"
    assert "`n_routed_experts` 168 but `num_experts` 256" in trap.message
    assert trap.message.endswith("its headers hold 168")
    assert trap.fix == "delete `num_experts` from the target's config.json"


def test_router_in_bf16_matters_only_where_the_target_carries_the_layer(whole, in_target):
    bare = {k: v for k, v in whole.items() if k != "moe_router_dtype"}
    assert in_target(bare, ["model.layers.77.input_layernorm.weight"]) == ()
    (trap,) = in_target(bare, [LAYER])
    assert (trap.id, trap.severity, trap.silent) == ("router-dtype", "warning", True)


def test_block_of_a_patched_build_is_named(release_config, in_target):
    assert ids(in_target(release_config("target-awq-int4-fp8-mtp-graft"))) == ["mtp-quantization-config"]


def test_head_that_nvfp4_would_cover_is_named(release_config, in_target):
    config = release_config("target-nvfp4-lukealonso")
    (trap,) = in_target(config)
    assert trap.id == "quantized-head"
    assert '"model.layers.78.head"' in trap.fix
    block = config["quantization_config"]
    covered = block | {"ignore": [*block["ignore"], "model.layers.78.head"]}
    assert in_target(config | {"quantization_config": covered}) == ()


@pytest.mark.parametrize("nested", [False, True], ids=["block of config.json", "side file of ModelOpt"])
def test_head_that_nvfp4_would_cover_is_excluded_by_the_command(release_config, target_of, nested):
    config = release_config("target-nvfp4-lukealonso")
    block, head = config["quantization_config"], "model.layers.78.head"
    told = block | {"ignore": [*block["ignore"], head]}
    if nested:
        inner = {"quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": None}
        sides = (inner | {"exclude_modules": listed["ignore"]} for listed in (block, told))
        block, told = ({"producer": {"name": "modelopt"}, "quantization": side} for side in sides)
        told["quant_method"] = "modelopt"
    target = target_of(config | {"quantization_config": block})
    command = VLLM.serve(target, "draft", Serving(), VLLM.demands(target, None, family_of(config)))
    words = command.argv
    assert json.loads(words[words.index("--hf-overrides") + 1])["quantization_config"] == told
    assert VLLM.told_config(target)["quantization_config"] == told
    assert VLLM.carrying_config(target)["quantization_config"] == told
    other = target_of(release_config("target-nvfp4-nvidia"))
    assert (
        "--hf-overrides" not in VLLM.serve(other, "draft", Serving(), VLLM.demands(other, None, family_of(config))).argv
    )


SILENT = {
    "scoring_func": "softmax",
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": False,
    "num_experts_per_tok": 4,
    "n_group": 8,
    "rms_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "indexer_rope_interleave": False,
    "index_share_for_mtp_iteration": False,
    "index_topk": 1024,
    "rope_parameters": {"rope_theta": 10000, "rope_type": "default"},
    "moe_router_dtype": "bfloat16",
}


@pytest.mark.parametrize("field", SILENT)
def test_wrong_field_that_vllm_would_not_notice_fails_the_draft(field, draft, judged):
    assert draft[field] != SILENT[field]
    (trap,) = judged(draft | {field: SILENT[field]})
    assert (trap.id, trap.severity, trap.silent) == (f"config-{field}", "error", True)
    assert trap.where == f"draft's config.json, {field}"


@pytest.mark.parametrize(
    "field",
    [
        "scoring_func",
        "topk_method",
        "indexer_rope_interleave",
        "index_share_for_mtp_iteration",
        "rope_parameters",
        "moe_router_dtype",
    ],
)
def test_missing_field_whose_default_is_wrong_fails_the_draft(field, draft, judged):
    (trap,) = judged({k: v for k, v in draft.items() if k != field})
    assert (trap.id, trap.severity) == (f"config-{field}", "error")


def test_missing_field_whose_default_is_right_is_no_trap(draft, judged):
    without = {k: v for k, v in draft.items() if k not in ("norm_topk_prob", "n_group", "moe_layer_freq")}
    assert judged(without) == ()


def test_theta_outside_rope_parameters_is_the_same_rope(draft, judged):
    flat = {k: v for k, v in draft.items() if k != "rope_parameters"} | {"rope_theta": 8000000}
    assert judged(flat) == ()


@pytest.mark.parametrize("stale", [{"num_experts": 168}, {"num_local_experts": 168}])
def test_stale_expert_key_in_the_draft_is_silent_and_fatal(stale, draft, judged):
    found = [trap for trap in judged(draft | stale) if trap.id == "stale-num-experts"]
    assert [(t.severity, t.silent) for t in found] == [("error", True)]


def test_more_experts_than_the_target_cannot_load_fewer_can(draft, judged, whole):
    (more,) = judged(draft, whole | {"n_routed_experts": 218})
    assert (more.id, more.severity) == ("expert-count", "error")
    assert "vLLM stops at expert 218" in more.message
    (fewer,) = judged(draft | {"n_routed_experts": 218})
    assert (fewer.id, fewer.severity) == ("expert-count", "note")


@pytest.mark.parametrize(
    ("change", "trap"),
    [
        ({"model_type": "llama"}, "config-model_type"),
        ({"architectures": []}, "config-architectures"),
        ({"num_nextn_predict_layers": 2}, "config-num_nextn_predict_layers"),
        ({"num_hidden_layers": 77}, "config-num_hidden_layers"),
        ({"hidden_size": 4096}, "config-hidden_size"),
        ({"quantization_config": {"quant_method": "w4afp8"}}, "draft-method"),
        ({"quantization_config": {"quant_method": ["fp8"]}}, "draft-method"),
    ],
)
def test_config_that_stops_the_start_fails_the_draft(change, trap, draft, judged):
    found = {t.id: t.severity for t in judged(draft | change)}
    assert found[trap] == "error"


def test_shorter_context_is_only_noted(draft, judged):
    (trap,) = judged(draft | {"max_position_embeddings": 4096})
    assert (trap.id, trap.severity) == ("config-max_position_embeddings", "note")


def test_draft_whose_own_block_says_something_else_is_warned_about(draft, judged, release_config):
    other = release_config("target-fp8")["quantization_config"]
    (trap,) = judged(draft | {"quantization_config": other})
    assert (trap.id, trap.severity) == ("draft-block", "warning")
    assert "says FP8 block 128x128 for `self_attn.q_a_proj`, the target asks for BF16" in trap.message


def test_traps_print_as_json(whole, draft, judged):
    found = judged(draft | SILENT)
    assert len(json.dumps([trap.message for trap in found])) > 0
    assert {t.id for t in found} >= {f"config-{field}" for field in SILENT}
