"""AWQ, GPTQ and AutoRound targets, rule by rule; vllm_targets.py asks vLLM's own classes the same of random ones."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from target_blocks import write_headers

from mtpforge import scheme as schemes
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES, overlay
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.heads import lightest
from mtpforge.tensors import Quantization, Spec

VLLM = ENGINES["vllm"]
P = "model.layers.78."
AWQ = Quantization("awq", 4, "", "group", 128, symmetric=False, scale_dtype="F16")
GPTQ = Quantization("gptq", 4, "", "group", 128, scale_dtype="F16")
GPTQ8 = replace(GPTQ, bits=8)
ATTENTION = {f"self_attn.{n}" for n in ("q_a_proj", "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj", "o_proj")}
INDEXER = {"self_attn.indexer.wq_b"}
SHARED = {f"mlp.shared_experts.{n}_proj" for n in ("gate", "up", "down")}
EXPERTS = {f"mlp.experts.*.{n}_proj" for n in ("gate", "up", "down")}
ALL = ATTENTION | INDEXER | SHARED | EXPERTS
NEVER = {"eh_proj", "mlp.gate", "self_attn.indexer.wk", "self_attn.indexer.weights_proj"}


def awq(**more):
    return {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"} | more


def gptq(**more):
    return {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True} | more


def auto_round(**more):
    block = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"}
    return block | {"packing_format": "auto_round:auto_gptq"} | more


@pytest.fixture
def plain(release_config):
    """GLM-5.2's config without its quantization."""
    return {k: v for k, v in release_config("target-bf16").items() if k != "quantization_config"}


@pytest.fixture
def demanded(plain, target_of):
    """Block (and names of tensors) -> quantized module -> how."""

    def ask(block, names=()):
        config = plain | {"quantization_config": block}
        found = VLLM.demands(target_of(config, names), None, family_of(config))
        assert {r.pattern for r in found.rules} == ALL | NEVER
        return {r.pattern: r.quantization for r in found.rules if not r.quantization.is_dense}

    return ask


LISTED = [
    (["lm_head"], ALL),
    (["self_attn"], SHARED | EXPERTS),
    (["experts"], ATTENTION | INDEXER),
    ([f"{P}mlp.experts"], ATTENTION | INDEXER | SHARED),
    ([f"{P}mlp.experts.0.gate_proj", f"{P}mlp.experts.0.up_proj"], ALL),  # below the stack: never asked about
    (["q_a_proj", "kv_a_proj_with_mqa"], ALL - {"self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"}),
    (["model.layers.7.", "mlp.gate"], ALL),
    (["layers.78"], set()),
]


@pytest.mark.parametrize(("listed", "quantized"), LISTED)
def test_awq_leaves_dense_what_contains_an_entry(demanded, listed, quantized):
    assert demanded(awq(modules_to_not_convert=listed)) == dict.fromkeys(quantized, AWQ)


@pytest.mark.parametrize(
    ("more", "quantized"),
    [
        ({}, dict.fromkeys(ALL, GPTQ)),
        ({"modules_in_block_to_quantize": ["model.layers.3."]}, dict.fromkeys(EXPERTS, GPTQ)),
        ({"modules_in_block_to_quantize": [["o_proj"], ["experts"]]},
         dict.fromkeys(EXPERTS | SHARED | {"self_attn.o_proj"}, GPTQ)),
        ({"dynamic": {"-:.*self_attn.*": {}}}, dict.fromkeys(SHARED | EXPERTS, GPTQ)),
        ({"dynamic": {"-:self_attn": {}, "-:.*experts[.]0": {}}}, dict.fromkeys(ALL, GPTQ)),  # from the start; stack
        ({"dynamic": {"-:.*q_a_proj": {}}}, dict.fromkeys(ALL, GPTQ)),  # it is asked about as fused_qkv_a_proj
        ({"dynamic": {"+:.*experts$": {"bits": 8}, "-:.*mlp.*": {}}},
         dict.fromkeys(ATTENTION | INDEXER, GPTQ) | dict.fromkeys(EXPERTS, GPTQ8)),  # the first that matches
        ({"checkpoint_format": "gptq_v2"}, dict.fromkeys(ALL, replace(GPTQ, format="gptq_v2"))),
        ({"group_size": -1, "desc_act": True}, dict.fromkeys(ALL, replace(GPTQ, strategy="channel", group_size=None))),
    ],
)  # fmt: skip
def test_gptq_goes_by_its_list_and_the_first_rule(demanded, more, quantized):
    block = {"modules_in_block_to_quantize": ["model.layers."]} | more
    assert demanded(gptq(**block)) == quantized


@pytest.mark.parametrize(
    ("more", "quantized"),
    [
        ({}, dict.fromkeys(ALL, GPTQ)),
        ({"packing_format": "auto_round:auto_awq", "sym": False}, dict.fromkeys(ALL, AWQ)),
        ({"block_name_to_quantize": "model.layers.3,model.layers.4"}, {}),
        ({"block_name_to_quantize": ["model.layers"]}, dict.fromkeys(ALL, GPTQ)),
        ({"extra_config": {".*self_attn.*": {"bits": 16}}}, dict.fromkeys(SHARED | EXPERTS, GPTQ)),
        ({"extra_config": {"self_attn": {"bits": 16}}}, dict.fromkeys(ALL, GPTQ)),  # no expression, no name
        ({"extra_config": {"o_proj": {"bits": 8}}}, dict.fromkeys(ALL, GPTQ) | {"self_attn.o_proj": GPTQ8}),
        ({"extra_config": {f"{P}mlp.experts.0.up_proj": {"bits": 16}}}, dict.fromkeys(ALL, GPTQ)),
        ({"extra_config": {"experts$": {"bits": 16}}}, dict.fromkeys(ALL - EXPERTS, GPTQ)),
    ],
)
def test_autoround_goes_by_names_ends_of_names_and_expressions(demanded, more, quantized):
    assert demanded(auto_round(**more)) == quantized


REFUSED = [
    (awq(bits=8), "`Unsupported num_bits = 8. Supported: 4`"),
    ({"quant_method": "awq", "bits": 4, "zero_point": True}, "`Cannot find any of ['q_group_size', 'group_size']"),
    (awq(modules_to_not_convert=["q_a_proj"]), "`Detected some but not all shards of a layer are quantized`"),
    (gptq(desc_act=True), "`GPTQ group activation ordering (desc_act=True) is no longer supported`"),
    (gptq(sym=False), "`Unsupported quantization config: bits=4, sym=False`"),
    (gptq(dynamic={"+:.*o_proj": {"bits": 3}}), "`Unsupported quantization config: bits=3, sym=True`"),
    (gptq(dynamic={"+:.*o_proj": {"group_size": 256}}), "`Marlin does not support group_size = 256`"),
    (gptq(modules_in_block_to_quantize=["q_a_proj"]), "`Detected some but not all shards of a layer are quantized`"),
    (auto_round(packing_format="auto_round"), "`Unsupported packing_format: auto_round`"),
    (auto_round(sym=False), "`INC quantization with bits=4, sym=False is not supported`"),
    (auto_round(extra_config={f"{P}self_attn.q_a_proj": {"bits": 8}}), "`Fused module requires consistent"),
]


@pytest.mark.parametrize(("block", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_stops_vllm_is_refused_in_its_words(demanded, block, why):
    with pytest.raises(MtpforgeError) as caught:
        demanded({"modules_to_not_convert": ["lm_head"], "modules_in_block_to_quantize": [P]} | block)
    assert caught.value.why.startswith(f"vLLM would not start: {why}") or f"refuses to start: {why}" in caught.value.why
    assert caught.value.fix


UNMADE = [
    (awq(zero_point=False), "AWQ weights without zero points"),
    (awq(group_size=256), "AWQ experts in groups of 256, for which Marlin has no kernel,"),
    (gptq(group_size=16), "GPTQ experts in groups of 16, for which Marlin has no kernel,"),
    (gptq(checkpoint_format="gptq_p"), "GPTQ weights in checkpoint_format gptq_p"),
    (auto_round(bits=3), "AutoRound weights of 3 bits"),
    (auto_round(packing_format="auto_round:auto_awq"), "symmetric AutoRound weights in AWQ's packing"),
    (auto_round(data_type="mx_fp"), "AutoRound weights of data_type mx_fp"),
]


@pytest.mark.parametrize(("block", "what"), UNMADE, ids=[what for _, what in UNMADE])
def test_what_vllm_takes_and_no_draft_is_made_for_says_so(demanded, block, what):
    experts_alone = {"modules_to_not_convert": ["self_attn", "shared"], "dynamic": {"-:.*(self_attn|shared).*": {}}}
    with pytest.raises(MtpforgeError) as caught:
        demanded(experts_alone | {"modules_in_block_to_quantize": [P]} | block)
    assert caught.value.what == f"drafts with {what} cannot be made yet"


MAIN = [f"model.layers.3.{module}.qweight" for module in ("self_attn.o_proj", "mlp.experts.0.up_proj")]


def test_a_target_without_the_layer_is_read_no_header_of(demanded):
    """ConfigOnly has no headers to read: names tell that AWQ builds all of the layer, GPTQ the experts alone."""
    names = [*MAIN, "model.norm.weight", "model.layers.3.mlp.gate.weight", "lm_head.weight"]
    assert demanded(awq(), names) == dict.fromkeys(ALL, AWQ)
    assert demanded(gptq(), names) == dict.fromkeys(EXPERTS, GPTQ)
    assert demanded(gptq(), ["model.norm.weight"]) == dict.fromkeys(ALL, GPTQ), "nothing quantized: all is"


@pytest.mark.parametrize("block", [awq(), awq(modules_to_not_convert=None), gptq(), gptq(dynamic={"-:x": {}})])
def test_a_config_alone_cannot_say_what_headers_would(demanded, block):
    with pytest.raises(MtpforgeError, match="which modules of the target are quantized cannot be known") as caught:
        demanded(block)
    assert "its *.safetensors included" in caught.value.fix


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_headers_of_the_layer_s_own_tensors_decide(plain, tmp_path, method):
    """A weight of FP8 is no float to vLLM; an expert stored as floats leaves its stack quantized."""
    own = {"self_attn.o_proj": "BF16", "self_attn.q_b_proj": "F8_E4M3", "mlp.experts.0.up_proj": "F32"}
    specs = {name: Spec("I32", (8, 8)) for name in MAIN} | {f"{P}{n}.weight": Spec(d, (8, 8)) for n, d in own.items()}
    config = plain | {"quantization_config": awq() if method == "awq" else gptq()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_headers(tmp_path / second, {name: spec for name, spec in specs.items() if P in name})
    (tmp_path / first).write_bytes(b"no header")  # layer 3: never opened
    index = {name: second if P in name else first for name in specs}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    found = VLLM.demands(open_checkpoint(str(tmp_path)), None, family_of(config))
    quantized = {r.pattern for r in found.rules if not r.quantization.is_dense}
    assert quantized == (ALL - {"self_attn.o_proj"} if method == "awq" else EXPERTS | {"self_attn.q_b_proj"})


STATED = [
    (awq(modules_to_not_convert=["lm_head"]), "bf16"),
    (awq(modules_to_not_convert=["lm_head", "self_attn"]), "awq-int4-g128"),
    (gptq(modules_in_block_to_quantize=["experts"]), "bf16"),
    (gptq(modules_in_block_to_quantize=["experts"], dynamic={"-:.*layers.7.*": {}}), "gptq-int4-g128"),
    (gptq(bits=8, modules_in_block_to_quantize=["experts"], checkpoint_format="gptq_v2"), "int4-g128-sym"),
    (auto_round(extra_config={".*": {"bits": 16}}), "gptq-int4-g128"),
    (auto_round(bits=8), "int4-g128-sym"),
    (auto_round(packing_format="auto_round:auto_awq", sym=False), "bf16"),
]


@pytest.mark.parametrize(("block", "preset"), STATED)
def test_the_layer_is_stated_in_its_target_s_method(plain, target_of, block, preset):
    target = target_of(plain | {"quantization_config": block})
    told, scheme = overlay.beside(replace_restated(target), VLLM, schemes.load(preset))
    assert told.quantization["quant_method"] == block["quant_method"]
    kinds = {r.quantization for r in scheme.rules if not r.quantization.is_dense}
    by_preset = {r.quantization for r in schemes.load(preset).rules if not r.quantization.is_dense}
    assert {(q.bits, q.group_size) for q in kinds} == {(q.bits, q.group_size) for q in by_preset}
    assert {r.pattern for r in scheme.rules if not r.quantization.is_dense} == (ALL if by_preset else set())


def replace_restated(target):
    """A config that can be told another block, as checkpoints can."""

    class Told(type(target)):
        def restated(self, block):
            return type(target)(self.config, self.names, quantization=block, is_restated=True)

    return Told(target.config, target.names, quantization=target.quantization)


def test_a_target_whose_headers_decided_is_told_all_of_the_list(plain, target_of):
    """Beside a list vLLM reads no headers: what they said of the other layers must stand in it."""
    linears = [f"model.layers.{n}.self_attn.{m}" for n in range(78) for m in ("o_proj", "q_b_proj", "kv_b_proj")]
    config = plain | {"quantization_config": gptq()}
    target = target_of(config, [f"{name}.qweight" for name in linears])
    block = VLLM.restate(target, family_of(config), schemes.load("gptq-int4-g128"))
    assert block["modules_in_block_to_quantize"] == [*sorted(linears), P]
    dense = target_of(plain | {"quantization_config": awq()}, [f"{name}.weight" for name in linears])
    block = VLLM.restate(dense, family_of(config), schemes.load("bf16"))
    assert block["modules_to_not_convert"] == [*sorted(linears), P]


@pytest.mark.parametrize(
    ("block", "preset", "able"),
    [
        (awq(modules_to_not_convert=["lm_head"]), "int4-g32-asym", "bf16"),
        (awq(modules_to_not_convert=["lm_head"]), "nvfp4", "awq-int4-g128, bf16"),
        (gptq(modules_in_block_to_quantize=[P]), "awq-int4-g128", "bf16, gptq-int4-g128, int4-g128-sym, int8-channel"),
    ],
)
def test_what_these_methods_cannot_state_is_refused_with_what_they_can(plain, target_of, block, preset, able):
    target = target_of(plain | {"quantization_config": block})
    with pytest.raises(MtpforgeError) as refused:
        overlay.beside(target, VLLM, schemes.load(preset))
    assert able in refused.value.fix


@pytest.mark.parametrize(
    "block",
    [
        awq(modules_to_not_convert=["lm_head", "indexer"]),
        gptq(modules_in_block_to_quantize=[P], dynamic={"-:.*self_attn.*": {}, "+:.*experts$": {"bits": 8}}),
        auto_round(extra_config={"experts$": {"bits": 16}, "o_proj": {"bits": 8, "group_size": 32}}),
        auto_round(packing_format="auto_round:auto_awq", sym=False, extra_config={".*shared.*": {"bits": 16}}),
    ],
)
def test_a_draft_states_in_its_own_block_what_it_is(plain, target_of, block):
    config = plain | {"quantization_config": block}
    target, family = target_of(config), family_of(config)
    scheme = VLLM.demands(target, None, family)
    made = VLLM.draft_config(target, config, family, scheme, 256)
    assert made["quantization_config"]["quant_method"] == block["quant_method"]
    stated = VLLM.stated(made, family)
    assert {r.pattern: r.quantization for r in stated.rules} == {r.pattern: r.quantization for r in scheme.rules}
    alone = VLLM.demands(target_of(made), made, family)  # lists stand in it: no headers are asked for
    assert alone.rules == stated.rules


@pytest.mark.parametrize(
    ("block", "stored"),
    [
        (awq(modules_to_not_convert=["layers.78"]), AWQ),
        (gptq(bits=8, modules_in_block_to_quantize=["layers.3."]), GPTQ),
        (auto_round(bits=8), GPTQ),
    ],
)
def test_the_lightest_is_four_bits_in_groups_of_128(plain, target_of, block, stored):
    found = lightest(replace_restated(target_of(plain | {"quantization_config": block})), VLLM)
    assert {r.pattern: r.quantization for r in found.rules if not r.quantization.is_dense} == dict.fromkeys(ALL, stored)
