from __future__ import annotations

import json

import pytest

from mtpforge import scheme as schemes
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16, Quantization

VLLM = ENGINES["vllm"]
TARGETS = [
    "target-awq-int4-218-experts",
    "target-awq-int4-fp8-mtp-graft",
    "target-awq-int4-ignore-to-77",
    "target-awq-int4-no-nextn-field",
    "target-bf16",
    "target-fp8",
    "target-int4-int8mix-quanttrio",
    "target-int8mix-nvfp4-festr2",
    "target-mxfp4-amd",
    "target-nvfp4-lorbus",
    "target-nvfp4-lukealonso",
    "target-nvfp4-nvidia",
    "target-nvfp4-reap-168-stale-num-experts",
]
FP8 = Quantization("fp8_scaled", 8, strategy="channel", scale_dtype="F32", input_scale="dynamic")
KINDS = {
    "pack int3 g32": Quantization("pack_quantized", 3, strategy="group", group_size=32, scale_dtype="BF16"),
    "pack int4 asym, F32 scales": Quantization(
        "pack_quantized", 4, strategy="group", group_size=32, symmetric=False, scale_dtype="F32"
    ),
    "int8 w8a8": Quantization("int_quantized", 8, strategy="channel", scale_dtype="BF16", input_scale="dynamic"),
    "fp8 channel": FP8,
    "fp8 tensor static": Quantization("fp8_scaled", 8, strategy="tensor", scale_dtype="F32", input_scale="static"),
    "fp8 blocks": Quantization(
        "fp8_scaled", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic"
    ),
    "deepseek fp8": Quantization(
        "fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic"
    ),
    "nvfp4": Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3", input_scale="static"),
    "nvfp4 weights only": Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3"),
    **{
        f"mxfp{bits} {inputs}": Quantization(
            f"mxfp{bits}", bits, strategy="group", group_size=32, scale_dtype="U8", input_scale=inputs
        )
        for bits in (4, 8)
        for inputs in ("none", "dynamic")
    },
    **{
        f"quark mxfp4 {inputs}": Quantization(
            "quark_mxfp4", 4, strategy="group", group_size=32, scale_dtype="U8", input_scale=inputs
        )
        for inputs in ("none", "dynamic")
    },
    "quark fp8 channel": Quantization("modelopt_fp8", 8, strategy="channel", scale_dtype="F32", input_scale="dynamic"),
    "quark int8": Quantization("quark_int8", 8, strategy="channel", scale_dtype="F32", input_scale="dynamic"),
    "modelopt nvfp4": Quantization(
        "modelopt_nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3", input_scale="static"
    ),
    "modelopt nvfp4 weights only": Quantization(
        "modelopt_nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3"
    ),
}


def draft_of(target, scheme=None, source=None, n_experts=None):
    family = family_of(target.config)
    scheme = scheme or VLLM.demands(target, None, family)
    n_experts = n_experts or family.n_experts(target.config)
    return VLLM.draft_config(target, source or target.config, family, scheme, n_experts)


def quantizations(scheme, config):
    return {m.template: scheme.of(m.template).quantization for m in family_of(config).modules(config, 1)}


@pytest.mark.parametrize("name", TARGETS)
def test_draft_states_the_scheme_of_its_target_by_name(name, release_config, target_of):
    target = target_of(release_config(name))
    family = family_of(target.config)
    draft = draft_of(target)
    demanded = VLLM.demands(target, None, family)
    assert quantizations(VLLM.demands(target_of(draft), None, family), draft) == quantizations(demanded, target.config)
    assert ("quantization_config" in draft) == (demanded.name != "bf16")


@pytest.mark.parametrize("name", TARGETS)
def test_no_trap_is_left_in_a_draft_of_ours(name, release_config, target_of):
    target = target_of(release_config(name))
    family = family_of(target.config)
    assert VLLM.draft_traps(target.config, draft_of(target), family, VLLM.demands(target, None, family)) == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dense", ["mlp.experts.*", "self_attn.*", "mlp.shared_experts.down_proj"])
def test_every_quantization_is_stated_so_that_it_is_read_back(kind, dense, release_config, target_of):
    always = [Rule(p, BF16, "") for p in ("eh_proj", "mlp.gate", "self_attn.indexer.w[ke]*", dense)]
    scheme = Scheme("mine", (*always, Rule("*", KINDS[kind], "")))
    config = release_config("target-bf16")
    draft = draft_of(target_of(config), scheme)
    again = VLLM.demands(target_of(draft), None, family_of(draft))
    assert quantizations(again, draft) == quantizations(scheme, config)


@pytest.mark.parametrize("rest", ["quark fp8 channel", "mxfp8 dynamic"])
def test_quark_states_several_kinds_by_name(rest, release_config, target_of):
    rules = [Rule(p, BF16, "") for p in ("eh_proj", "mlp.gate", "self_attn.indexer.*")]
    rules += [Rule("mlp.experts.*", KINDS["quark mxfp4 dynamic"], ""), Rule("*", KINDS[rest], "")]
    scheme, config = Scheme("mine", tuple(rules)), release_config("target-bf16")
    draft = draft_of(target_of(config), scheme)
    assert draft["quantization_config"]["quant_method"] == "quark"
    again = VLLM.demands(target_of(draft), None, family_of(draft))
    assert quantizations(again, draft) == quantizations(scheme, config)


@pytest.mark.parametrize("first", ["mxfp4 none", "mxfp8 dynamic"])
def test_microscaled_experts_stand_beside_the_other_methods_of_their_libraries(first, release_config, target_of):
    rest = "modelopt nvfp4" if first == "mxfp8 dynamic" else "pack int3 g32"
    always = [Rule(p, BF16, "") for p in ("eh_proj", "mlp.gate", "self_attn.indexer.*")]
    scheme = Scheme("mine", (*always, Rule("mlp.experts.*", KINDS[first], ""), Rule("*", KINDS[rest], "")))
    draft = draft_of(target_of(release_config("target-bf16")), scheme)
    again = VLLM.demands(target_of(draft), None, family_of(draft))
    assert quantizations(again, draft) == quantizations(scheme, draft)


@pytest.mark.parametrize("last", ["nvfp4", "fp8 channel", "modelopt nvfp4"])
def test_mixtures_are_stated_so_that_they_are_read_back(last, release_config, target_of):
    first = KINDS["fp8 tensor static"] if "modelopt" in last else KINDS["pack int3 g32"]
    always = [Rule(p, BF16, "") for p in ("eh_proj", "mlp.gate", "self_attn.indexer.*")]
    scheme = Scheme("mine", (*always, Rule("mlp.experts.*", KINDS[last], ""), Rule("*", first, "")))
    draft = draft_of(target_of(release_config("target-bf16")), scheme)
    again = VLLM.demands(target_of(draft), None, family_of(draft))
    assert quantizations(again, draft) == quantizations(scheme, draft)


def test_formats_of_two_methods_in_one_scheme_are_refused(release_config, target_of):
    rules = Rule("mlp.*", KINDS["modelopt nvfp4"], ""), Rule("*", KINDS["pack int3 g32"], "")
    with pytest.raises(MtpforgeError, match="no quantization method stores all formats"):
        draft_of(target_of(release_config("target-bf16")), Scheme("mine", rules))


def test_block_carries_what_forks_read(release_config, target_of):
    block = draft_of(target_of(release_config("target-awq-int4-ignore-to-77")))["quantization_config"]
    pair = ["q_a_proj", "kv_a_proj_with_mqa"]
    assert block["packed_modules_mapping"] == {
        "fused_qkv_a_proj": pair,
        "fused_qkv_a_proj_with_mqa": pair,
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    (pattern,) = block["config_groups"]["group_0"]["targets"]
    assert pattern.startswith("re:model[.]layers[.]78[.](?:mtp_block[.])?(?:")
    assert pattern.endswith("$")
    assert "fused_qkv_a_proj_with_mqa" in pattern
    assert "model.layers.78.self_attn.indexer.wk" in block["ignore"]


def test_wk_that_an_fp8_source_keeps_is_not_listed_as_dense(release_config, target_of):
    target = target_of(release_config("target-fp8"))
    wk = "model.layers.78.self_attn.indexer.wk"
    kept = draft_of(target)["quantization_config"]["modules_to_not_convert"]
    cast = draft_of(target, source=release_config("target-bf16"))["quantization_config"]["modules_to_not_convert"]
    assert wk not in kept
    assert wk in cast


def test_every_field_that_the_engine_defaults_is_written(release_config, target_of):
    target = target_of(release_config("target-bf16"))
    bare = {k: v for k, v in target.config.items() if k not in ("norm_topk_prob", "moe_layer_freq", "n_group")}
    draft = draft_of(target_of(bare), source=bare)
    assert (draft["norm_topk_prob"], draft["moe_layer_freq"], draft["n_group"]) == (True, 1, 1)


def test_length_that_the_target_lost_comes_from_the_source(release_config, target_of):
    """Not what vLLM holds the target to: see the next test."""
    whole = release_config("target-bf16")
    lost = {"max_position_embeddings", "moe_router_dtype"}
    target = target_of({k: v for k, v in whole.items() if k not in lost})
    draft = draft_of(target, source=whole)
    assert {k: draft[k] for k in lost} == {k: whole[k] for k in lost}


@pytest.mark.parametrize("lost", ["index_topk", "vocab_size", "rope_parameters", "scoring_func", "topk_method"])
def test_field_that_the_target_lost_is_named_with_the_source_s_value(lost, release_config, target_of):
    """vLLM runs the target without it, or by its own default: no draft could be right beside it."""
    whole = release_config("target-bf16")
    target = target_of({k: v for k, v in whole.items() if k != lost})
    with pytest.raises(MtpforgeError) as caught:
        draft_of(target, source=whole)
    assert caught.value.what == f"the config has no `{lost}`"
    assert f'`"{lost}": {json.dumps(whole[lost])}`' in caught.value.fix


def test_field_that_neither_has_is_named_where_vllm_has_no_default(release_config, target_of):
    target = target_of({k: v for k, v in release_config("target-bf16").items() if k != "index_topk"})
    with pytest.raises(MtpforgeError) as caught:
        draft_of(target)
    assert caught.value.what == "the config has no `index_topk`"
    assert "published base model" in caught.value.fix


def test_expert_count_is_stated_once(release_config, target_of):
    draft = draft_of(target_of(release_config("target-nvfp4-reap-168-stale-num-experts")))
    assert draft["n_routed_experts"] == 168
    assert "num_experts" not in draft


def test_draft_counts_one_layer_whatever_the_target_says(release_config, target_of):
    draft = draft_of(target_of(release_config("target-awq-int4-no-nextn-field")))
    assert draft["num_nextn_predict_layers"] == 1
    assert draft["num_hidden_layers"] == 78
    assert draft["moe_router_dtype"] == "float32"


def test_draft_of_a_nested_config_is_flat(release_config, target_of):
    text = release_config("target-bf16")
    nested = {"model_type": "glm_vision", "architectures": ["GlmVision"], "text_config": text}
    draft = draft_of(target_of(nested))
    assert draft["model_type"] == "glm_moe_dsa"
    assert draft["architectures"] == ["GlmMoeDsaForCausalLM"]
    assert "text_config" not in draft


@pytest.mark.parametrize("preset", [name for name in schemes.names() if name != "w4afp8"])  # SGLang's alone
def test_preset_can_be_stated_without_a_target(preset, release_config, target_of):
    scheme = schemes.load(preset)
    source = target_of(release_config("target-nvfp4-lukealonso"))
    draft = draft_of(source, scheme)
    again = VLLM.demands(target_of(draft), None, family_of(draft))
    assert again.name == preset
