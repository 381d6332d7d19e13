"""Targets restated so that a draft of another scheme fits beside them; what vLLM makes of it is tested with vLLM."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpforge import scheme as schemes
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES, overlay
from mtpforge.engines.vllm import restatements
from mtpforge.engines.vllm.layer_ranges import as_expressions, as_wildcards, numbers
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.scheme import Scheme

VLLM = ENGINES["vllm"]


@given(st.sets(st.integers(0, 130), min_size=1))
def test_numbers_match_themselves_and_no_others(wanted):
    expression = re.compile("|".join(numbers(wanted)))
    assert {n for n in range(300) if expression.fullmatch(str(n))} == wanted


def test_names_are_listed_once_and_expressions_stay():
    entries = ["lm_head", "re:model[.]layers[.]1[.]a$", "model.layers.1.a", "model.layers.1.a", "lm_head"]
    assert as_expressions(entries) == ["lm_head", "re:model[.]layers[.]1[.]a$", "model.layers.1.a"]


def test_names_of_two_layers_stay_and_of_three_become_one_expression():
    two = [f"model.layers.{i}.mlp.gate" for i in (1, 5)]
    assert as_expressions(two) == two
    assert as_wildcards(two) == two
    assert as_expressions([*two, "model.layers.7.mlp.gate"]) == ["re:model[.]layers[.](?:[157])[.](?:mlp[.]gate)$"]


def test_names_of_many_layers_become_one_expression():
    names = [f"model.layers.{i}.self_attn.o_proj" for i in range(78)]
    assert as_expressions(["lm_head", *names]) == [
        "lm_head",
        "re:model[.]layers[.](?:[0-9]|[1-6][0-9]|7[0-7])[.](?:self_attn[.]o_proj)$",
    ]
    assert as_wildcards([f"{name}*" for name in names]) == [
        f"model.layers.{layers}.self_attn.o_proj*" for layers in ("[0-9]", "[1-6][0-9]", "7[0-7]")
    ]


# target, preset, most bytes of the block
STATED = (
    ("target-nvfp4-nvidia", "nvfp4", 1300),
    ("target-nvfp4-lukealonso", "bf16", 1400),
    ("target-awq-int4-mtp-ignored", "int4-g32-asym", 1400),
    ("target-awq-int4-mtp-ignored", "int8-channel", 1900),
    ("target-awq-int4-ignore-to-77", "bf16", 1600),
    ("target-w4a16-mtp-canada-quant", "nvfp4", 1700),
    ("target-int4-int8mix-quanttrio", "int4-g128-sym", 3100),
    ("target-bf16", "int4-g32-asym", 900),
    ("target-bf16", "mxfp4", 900),
    ("target-awq-int4-mtp-ignored", "mxfp4", 2000),
    ("target-bf16", "mxfp8", 1300),
    ("target-mxfp4-amd", "mxfp4", 2100),
    ("target-mxfp4-amd", "fp8-block128", 5400),
)


@pytest.mark.parametrize(("name", "preset", "most"), STATED)
def test_block_states_the_wanted_scheme_briefly(name, preset, most, release_config, target_of):
    target, wanted = target_of(release_config(name)), schemes.load(preset)
    family = family_of(target.config)
    block = VLLM.restate(target, family, wanted)
    assert len(json.dumps(block)) < most
    told = target_of({**target.config, "quantization_config": block})
    demanded = VLLM.demands(told, None, family)
    spelled = {"nvfp4-g16-static", "mxfp4-g32", "fp8-block-128x128"}  # in the method's own tensors
    assert schemes.name_of(demanded.rules) in {preset, *spelled}


def test_block_that_was_restated_is_restated_again(release_config, target_of):
    """The layer's groups of the time before give way; the model's keep the format that they had from the block."""
    config = release_config("target-awq-int4-mtp-ignored")
    target = target_of(config)
    family, before = family_of(target.config), target.quantization
    for preset in ("int8-channel", "int4-g128-sym"):
        block = VLLM.restate(target, family, schemes.load(preset))
        target = target_of({**config, "quantization_config": block})
        assert schemes.name_of(VLLM.demands(target, None, family).rules) == preset
        formats = {name: group["format"] for name, group in block["config_groups"].items() if name != "mtp_0"}
        assert formats == dict.fromkeys(before["config_groups"], before["format"])


@pytest.mark.parametrize(
    ("name", "preset"), [("target-awq-int4-ignore-to-77", "int4-g32-asym"), ("target-mxfp4-amd", "bf16")]
)
def test_target_that_says_it_already_is_left_alone(name, preset, release_config, target_of):
    target = target_of(release_config(name))
    block = VLLM.restate(target, family_of(target.config), schemes.load(preset))
    assert block is target.quantization


# target, preset, what is said, what could be
REFUSED = (
    ("target-nvfp4-nvidia", "int4-g128-sym", "ModelOpt has no algorithm for INT4 g128", "bf16, nvfp4"),
    ("target-fp8", "nvfp4", "would be FP8 block 128x128", "bf16, fp8-block128"),
    ("target-w4afp8", "bf16", "blocks of method `w4afp8` are not restated", ""),
)


@pytest.mark.parametrize(("name", "preset", "why", "able"), REFUSED)
def test_what_the_method_cannot_state_is_refused_with_what_it_can(name, preset, why, able, release_config, target_of):
    target = target_of(release_config(name))
    with pytest.raises(MtpforgeError) as refused:
        overlay.beside(target, VLLM, schemes.load(preset))
    assert why in refused.value.why
    assert refused.value.fix.endswith(able or "the target's own is taken")


def test_scheme_without_a_rule_is_told_of_that_and_not_of_the_method(release_config, target_of):
    target = target_of(release_config("target-w4a16-mtp-canada-quant"))
    less = Scheme("mine", schemes.load("int4-g32-asym").rules[:-1])
    with pytest.raises(MtpforgeError) as refused:
        overlay.beside(target, VLLM, less)
    assert refused.value.what == "scheme mine has no rule for `self_attn.q_a_proj`"
    assert refused.value.fix == 'add a last rule with pattern = "*"'


def test_proposal_that_changes_another_matrix_is_none(release_config, target_of, monkeypatch):
    """One that frees the attention of every layer, though only that of the last was asked for."""
    target = target_of(release_config("target-w4a16-mtp-canada-quant"))
    target.quantization["config_groups"]["group_0"]["weights"]["symmetric"] = True
    freed = {**target.quantization, "ignore": ["lm_head", "re:.*embed_tokens.*"]}
    method = replace(restatements.METHODS["compressed-tensors"], proposals=lambda _block, _wish: iter([freed]))
    monkeypatch.setitem(restatements.METHODS, "compressed-tensors", method)
    with pytest.raises(MtpforgeError) as refused:
        VLLM.restate(target, family_of(target.config), schemes.load("int4-g128-sym"))
    assert "`model.layers.0.self_attn.fused_qkv_a_proj` would no longer be built as it is stored" in refused.value.why


def test_restated_folder_keeps_its_identity_and_its_files(tinyglm):
    target = open_checkpoint(str(tinyglm("nvfp4")))
    told, wanted = overlay.beside(target, VLLM, schemes.load("bf16"))
    assert told.is_restated
    assert not target.is_restated
    assert (told.identity, told.names, told.location) == (target.identity, target.names, target.location)
    assert told.config["quantization_config"] != target.config["quantization_config"]
    assert wanted.name == "bf16"
    assert target.quantization == target.config["quantization_config"]


def weights_only():
    """The preset nvfp4 without input scales: ModelOpt states it beside NVFP4 by mixed precision alone."""
    preset = schemes.load("nvfp4")
    rules = [replace(rule, quantization=replace(rule.quantization, input_scale="none")) for rule in preset.rules[:1]]
    return Scheme("nvfp4-w4a16", (*rules, *preset.rules[1:]))


def test_mixed_precision_is_no_answer_where_the_target_stores_scales_of_the_kv_cache(release_config, target_of):
    """vLLM would pass them over without a word, and run every attention with a scale of 1."""
    config = release_config("target-nvfp4-nvidia")
    assert config["quantization_config"]["kv_cache_scheme"]
    with pytest.raises(MtpforgeError) as refused:
        VLLM.restate(target_of(config), family_of(config), weights_only())
    assert "under ModelOpt's mixed precision vLLM reads no scales of the KV cache" in refused.value.why


def test_mixed_precision_is_an_answer_where_vllm_reads_the_scales_of_that_attention(release_config, target_of):
    """GLM-4.5 has keys and values of its own; a scheme that vLLM takes for none is none under mixed precision."""
    told = release_config("target-nvfp4-nvidia")["quantization_config"]
    of_layer = {"ignore": ["lm_head", "*self_attn*", "model.layers.92*"]}
    scheme = {"num_bits": 8, "type": "float", "dynamic": False}
    config = release_config("target-glm-4.5")
    target = target_of(config | {"quantization_config": told | of_layer | {"kv_cache_scheme": scheme}})
    block = VLLM.restate(target, family_of(config), weights_only())
    assert (block["quant_algo"], block["kv_cache_scheme"]) == ("MIXED_PRECISION", scheme)
    target = target_of(
        config | {"quantization_config": told | of_layer | {"kv_cache_scheme": scheme | {"num_bits": 4}}}
    )
    with pytest.raises(MtpforgeError) as refused:
        VLLM.restate(target, family_of(config), weights_only())
    assert "reads no scales of the KV cache" in refused.value.why


def test_target_of_mixed_precision_already_may_store_scales_of_the_kv_cache(release_config, target_of):
    config = release_config("target-nvfp4-nvidia")
    without = {**config, "quantization_config": {**config["quantization_config"], "kv_cache_scheme": None}}
    mixed = VLLM.restate(target_of(without), family_of(config), weights_only())
    assert mixed["quant_algo"] == "MIXED_PRECISION"
    mixed = {**mixed, "kv_cache_scheme": config["quantization_config"]["kv_cache_scheme"]}
    target = target_of({**config, "quantization_config": mixed})
    block = VLLM.restate(target, family_of(config), schemes.load("nvfp4"))
    assert block["quantized_layers"]["model.layers.78.mlp.experts"]["quant_algo"] == "NVFP4"


def test_mixed_precision_of_a_side_file_is_stated_so_that_vllm_does_not_read_that_file_instead(
    release_config, target_of
):
    """It does where the block that it is told has no `quantized_layers` at its top."""
    experts = {"model.layers.3.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16}}
    inner = {"quant_algo": "MIXED_PRECISION", "quantized_layers": experts, "exclude_modules": []}
    target = target_of(release_config("target-bf16") | {"quantization_config": {
        "quant_method": "modelopt_mixed", "producer": {"name": "modelopt"}, "quantization": inner,
    }})  # fmt: skip
    block = VLLM.restate(target, family_of(target.config), schemes.load("nvfp4"))
    assert "quantized_layers" in block
    assert block["quantization"]["quantized_layers"].keys() > experts.keys()


@pytest.mark.parametrize(
    ("entry", "heads"),
    [("re:model.layers.78[.].*", ["model.layers.78.head", "model.layers.78.shared_head.head"]), ("Linear", [])],
)
def test_layers_own_head_is_left_out_where_a_group_of_the_target_would_cover_it(
    entry, heads, target_of, release_config
):
    """VLLM constructs it before it takes the target's, and no class of a head may fit the group: it would not start."""
    config = release_config("target-awq-int4-mtp-ignored")
    (group,) = config["quantization_config"]["config_groups"].values()
    group["targets"] = [entry]
    block = VLLM.restate(target_of(config), family_of(config), schemes.load("nvfp4"))
    assert [name for name in block["ignore"] if name.endswith("head") and "78" in name] == heads
