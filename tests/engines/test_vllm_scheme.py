from __future__ import annotations

import json

import pytest

from mtpforge.engines import ENGINES
from mtpforge.engines.expected import expected
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.tensors import BF16, Quantization

VLLM = ENGINES["vllm"]
INT4 = Quantization("pack_quantized", 4, strategy="group", group_size=32, symmetric=False, scale_dtype="BF16")
INT8 = Quantization("pack_quantized", 8, strategy="channel", scale_dtype="BF16")
FP8 = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic")
NVFP4 = Quantization("modelopt_nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3", input_scale="static")
ALWAYS_DENSE = {"eh_proj", "mlp.gate", "self_attn.indexer.wk", "self_attn.indexer.weights_proj"}
INDEXER = ALWAYS_DENSE | {"self_attn.indexer.wq_b"}
EXPERTS = {f"mlp.experts.*.{p}_proj" for p in ("gate", "up", "down")}

# release -> (preset of the same content, quantization of what is not dense, tensors of the draft)
RELEASES = {
    "draft-int4-cosmicraisins": ("int4-g32-asym", INT4, 3122),
    "draft-int4-cosmicraisins-218-experts": ("int4-g32-asym", INT4, 2666),
    "source-nvfp4-reap-469b-156-experts": ("nvfp4", NVFP4, 1895),
    "target-awq-int4-218-experts": ("int4-g32-asym", INT4, 2666),
    "target-awq-int4-fp8-mtp-graft": ("int4-g32-asym", INT4, 3122),
    "target-awq-int4-ignore-to-77": ("int4-g32-asym", INT4, 3122),
    "target-awq-int4-mtp-ignored": ("bf16", BF16, 791),
    "target-awq-int4-no-nextn-field": ("int4-g32-asym", INT4, 3122),
    "target-bf16": ("bf16", BF16, 791),
    "target-fp8": ("fp8-block128", FP8, 1568),  # 1,569 where the source keeps wk in FP8
    "target-int4-int8mix-quanttrio": ("int8-channel", INT8, 2343),
    "target-int8mix-nvfp4-festr2": ("int8-channel", INT8, 2343),
    "target-mxfp4-amd": ("bf16", BF16, 791),
    "target-nvfp4-lorbus": ("nvfp4", NVFP4, 3095),
    "target-nvfp4-lukealonso": ("nvfp4", NVFP4, 3095),
    "target-nvfp4-nvidia": ("bf16", BF16, 791),
    "target-nvfp4-reap-168-stale-num-experts": ("bf16", BF16, 527),
    "target-w4a16-mtp-canada-quant": ("bf16", BF16, 791),
}
DENSE_THERE = {INT4: ALWAYS_DENSE, FP8: ALWAYS_DENSE, INT8: INDEXER}


@pytest.fixture
def scheme(target_of):
    def resolve(config, **block):
        target = target_of(config | ({"quantization_config": block} if block else {}))
        return VLLM.demands(target, None, family_of(config))

    return resolve


@pytest.fixture
def tiny(release_config):
    """GLM-5.2's config without its quantization."""
    return {k: v for k, v in release_config("target-bf16").items() if k != "quantization_config"}


def group(ignore=(), targets=("Linear",), weights=None, activations=None, stored_as="pack-quantized"):
    weights = weights or {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}
    return {
        "quant_method": "compressed-tensors",
        "format": stored_as,
        "ignore": list(ignore),
        "config_groups": {"group_0": {"targets": list(targets), "weights": weights, "input_activations": activations}},
    }


def dense(found):
    return {rule.pattern for rule in found.rules if rule.quantization.is_dense}


def everything(config):
    return {m.template for m in family_of(config).modules(config, 1)}


@pytest.mark.parametrize("name", RELEASES)
def test_published_config_asks_for_what_vllm_was_seen_to_build(name, release_config, scheme):
    config = release_config(name)
    preset, quantization, n_tensors = RELEASES[name]
    found = scheme(config)
    assert found.name == preset
    assert {rule.quantization for rule in found.rules} == {BF16, quantization}
    left_dense = DENSE_THERE.get(quantization, everything(config) - (EXPERTS if quantization == NVFP4 else set()))
    assert dense(found) == left_dense
    family = family_of(config)
    specs = expected(found, family, config, 78, family.n_experts(config))
    assert len(specs) == n_tensors


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        ("target-awq-int4-ignore-to-77", "int4-g32-asym-cosmicraisins"),
        ("target-nvfp4-lukealonso", "nvfp4-experts-lukealonso"),
        ("target-int4-int8mix-quanttrio", "int8-channel-quanttrio"),
        ("target-bf16", "bf16-zai-org"),
        ("target-mxfp4-amd", "mxfp4-amd"),
    ],
)
def test_expected_tensors_are_those_of_the_published_layer(config, layer, release_config, scheme, census):
    config = release_config(config)
    specs = expected(scheme(config), family_of(config), config, 78, 256)
    assert {name: (spec.dtype, spec.shape) for name, spec in specs.items()} == census(layer)


def test_published_fp8_layer_differs_from_the_expected_one_by_its_fp8_wk_alone(release_config, scheme, census):
    config = release_config("target-fp8")
    specs = expected(scheme(config), family_of(config), config, 78, 256)
    wanted = {(name, spec.dtype, spec.shape) for name, spec in specs.items()}
    published = {(name, *spec) for name, spec in census("fp8-zai-org").items()}
    wk = "model.layers.78.self_attn.indexer.wk.weight"
    assert wanted - published == {(wk, "BF16", (128, 6144))}
    assert published - wanted == {(wk, "F8_E4M3", (128, 6144)), (f"{wk}_scale_inv", "F32", (1, 48))}
    assert VLLM.decoded_on_load(family_of(config)) == {"self_attn.indexer.wk": {"fp8_block"}}


def test_reasons_name_the_entry_that_decided(release_config, scheme):
    def why(name, template):
        return scheme(release_config(name)).of(template).reason

    down = "mlp.experts.*.down_proj"
    assert why("target-awq-int4-ignore-to-77", down) == 'config group_0 matches "Linear"'
    assert why("target-awq-int4-ignore-to-77", "eh_proj") == "vLLM builds it dense"
    assert why("target-w4a16-mtp-canada-quant", down) == "ignore entry `re:.*layers\\.78\\..*`"
    assert why("target-nvfp4-nvidia", down) == "ignore entry `model.layers.78*`"
    assert why("target-mxfp4-amd", down) == "exclude entry `model.layers.78.mlp.experts.0.gate_proj`"
    assert why("target-fp8", down) == "method fp8, blocks of 128x128"
    assert why("target-bf16", down) == "the target is not quantized"
    assert why("target-int4-int8mix-quanttrio", down).startswith('config w8a16_mtp_channel matches "re:model[.]layers')


P = "model.layers.78."


def test_pattern_on_the_fused_name_wins_over_its_parts(tiny, scheme):
    found = scheme(tiny, **group(ignore=[f"{P}self_attn.fused_qkv_a_proj", f"{P}self_attn.q_a_proj"]))
    assert dense(found) == ALWAYS_DENSE | {"self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"}


def test_expression_is_anchored_at_the_start_only(tiny, scheme):
    assert "self_attn.o_proj" in dense(scheme(tiny, **group(ignore=[f"re:{P}self_attn.o"])))
    assert dense(scheme(tiny, **group(ignore=["re:self_attn"]))) == ALWAYS_DENSE


def test_only_expert_zero_decides_for_the_experts(tiny, scheme):
    some = [f"{P}mlp.experts.17.{p}_proj" for p in ("gate", "up", "down")]
    assert dense(scheme(tiny, **group(ignore=some))) == ALWAYS_DENSE
    first = [name.replace(".17.", ".0.") for name in some]
    assert dense(scheme(tiny, **group(ignore=first))) == ALWAYS_DENSE | EXPERTS


def test_names_with_mtp_block_are_never_asked_about(tiny, scheme):
    assert dense(scheme(tiny, **group(ignore=["re:.*mtp_block.*"]))) == ALWAYS_DENSE


def test_target_by_name_comes_before_target_by_class(tiny, scheme):
    block = group()
    eight = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    block["config_groups"]["late"] = {"targets": [f"re:{P}self_attn[.](q_a|kv_a).*"], "weights": eight}
    found = scheme(tiny, **block)
    assert found.of("self_attn.q_a_proj").quantization == INT8
    assert found.of("self_attn.kv_a_proj_with_mqa").reason.startswith("config late matches")
    assert found.of("self_attn.o_proj").quantization == INT4


def test_fused_matrix_needs_all_its_parts_targeted(tiny, scheme):
    one = scheme(tiny, **group(targets=[f"{P}self_attn.q_a_proj", f"{P}self_attn.o_proj"]))
    assert everything(tiny) - dense(one) == {"self_attn.o_proj"}
    both = scheme(tiny, **group(targets=[f"{P}self_attn.q_a_proj", f"{P}self_attn.kv_a_proj_with_mqa"]))
    assert everything(tiny) - dense(both) == {"self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"}


@pytest.mark.parametrize("entry", ["self_attn.q_a_proj", "mlp.shared_experts.up_proj"])
@pytest.mark.parametrize("method", ["compressed-tensors", "fp8", "modelopt"])
def test_fused_pair_half_ignored_is_refused(tiny, scheme, entry, method):
    name = P + entry
    block = {
        "compressed-tensors": group(ignore=[name]),
        "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": [name]},
        "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [name]},
    }[method]
    with pytest.raises(MtpforgeError) as caught:
        scheme(tiny, **block)
    ours, other = ("q_a_proj", "kv_a_proj_with_mqa") if "q_a" in entry else ("up_proj", "gate_proj")
    assert caught.value.what.startswith(f"the target leaves only {ours} of `")
    assert "Found different quantization schemes for the shards" in caught.value.why
    assert f"list {other} as well" in caught.value.fix


def test_experts_whose_projections_disagree_are_refused(tiny, scheme):
    with pytest.raises(MtpforgeError) as caught:
        scheme(tiny, **group(ignore=["re:.*experts.*down_proj"]))
    assert caught.value.what == "the target gives the projections of its experts different schemes"
    assert "down_proj ignore entry `re:.*experts.*down_proj`" in caught.value.why


def test_fp8_lists_are_exact_names_but_for_experts(tiny, scheme):
    def left(*names):
        block = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
        return dense(scheme(tiny, **block, modules_to_not_convert=list(names))) - ALWAYS_DENSE

    assert left(f"{P}self_attn", f"{P}self_attn.o_proj.weight") == set()
    assert left(f"{P}self_attn.o_proj") == {"self_attn.o_proj"}
    assert left(f"{P}mlp.experts.9.up_proj") == EXPERTS
    assert left(f"{P}mlp.shared_experts.down_proj.weight") == {"mlp.shared_experts.down_proj"}


def test_ignored_layers_win_over_modules_to_not_convert(tiny, scheme):
    lists = {"ignored_layers": [f"{P}self_attn.o_proj"], "modules_to_not_convert": [f"{P}self_attn.q_b_proj"]}
    found = scheme(tiny, quant_method="fp8", activation_scheme="dynamic", **lists)
    assert dense(found) == ALWAYS_DENSE | {"self_attn.o_proj"}
    assert found.of("self_attn.o_proj").reason == f"ignored_layers entry `{P}self_attn.o_proj`"


@pytest.mark.parametrize(("activations", "input_scale"), [("static", "static"), ("dynamic", "dynamic")])
def test_fp8_without_blocks_has_one_scale_per_tensor(tiny, scheme, activations, input_scale):
    found = scheme(tiny, quant_method="fp8", activation_scheme=activations)
    quantization = found.of("self_attn.o_proj").quantization
    assert (quantization.format, quantization.strategy) == ("fp8_scaled", "tensor")
    assert quantization.input_scale == input_scale
    specs = expected(found, family_of(tiny), tiny, 78, 1)
    assert (f"{P}self_attn.o_proj.input_scale" in specs) == (activations == "static")


def test_modelopt_entries_without_a_star_are_substrings(tiny, scheme):
    def left(*names):
        block = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": list(names)}
        return dense(scheme(tiny, **block)) - ALWAYS_DENSE

    assert left("model.layers.7") == everything(tiny) - ALWAYS_DENSE
    assert left("layers.7*") == set()
    assert left("*indexer*") == {"self_attn.indexer.wq_b"}
    # A wildcard on the parts of a fused matrix is not asked about.
    assert left(f"{P}self_attn.q_a_proj*", f"{P}self_attn.kv_a_proj_with_mqa*") == set()


def test_modelopt_side_file_is_read_as_the_block_is(tiny, target_of):
    target = target_of(tiny)
    side = {
        "producer": {"name": "modelopt"},
        "quantization": {
            "quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": None, "exclude_modules": ["*self_attn*"],
        },
    }  # fmt: skip
    found = VLLM.demands(type(target)(tiny, quantization=side), None, family_of(tiny))
    assert found.of("self_attn.o_proj").reason == "exclude_modules entry `*self_attn*`"
    assert found.of("mlp.experts.*.up_proj").quantization == NVFP4


def test_modelopt_weights_only_groups_need_no_input_scale(tiny, scheme):
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 16, "type": "float"}}}
    found = scheme(tiny, quant_method="modelopt", quant_algo="NVFP4", config_groups=groups)
    assert found.of("self_attn.o_proj").quantization.input_scale == "none"


def test_modelopt_mixed_precision_goes_by_name_part_and_child(tiny, scheme):
    layers = {
        f"{P}self_attn.o_proj": {"quant_algo": "FP8"},
        f"{P}self_attn.q_a_proj": {"quant_algo": "FP8"},
        f"{P}self_attn.kv_a_proj_with_mqa": {"quant_algo": "FP8"},
        f"{P}mlp.experts.0.gate_proj": {"quant_algo": "NVFP4", "group_size": 16},
    }
    found = scheme(tiny, quant_method="modelopt", quant_algo="MIXED_PRECISION", quantized_layers=layers)
    fp8 = {r.pattern for r in found.rules if r.quantization.format == "fp8_scaled"}
    assert fp8 == {"self_attn.o_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"}
    assert {r.pattern for r in found.rules if r.quantization == NVFP4} == EXPERTS


@pytest.mark.parametrize(
    ("block", "what"),
    [
        ({"quant_method": "w4afp8"}, "vLLM knows no quantization method `w4afp8`"),
        ({"quant_method": "torchao"}, "drafts for targets of method `torchao` cannot be made yet"),
        ({"quant_method": "awq", "modules_to_not_convert": ["lm_head"]}, "vLLM takes no such block"),
        (
            {
                "quant_method": "gptq",
                "bits": 3,
                "group_size": 128,
                "desc_act": False,
                "sym": True,
                "modules_in_block_to_quantize": ["mlp.experts"],
            },
            "vLLM takes no such GPTQ",
        ),
        (
            {
                "quant_method": "quark",
                "export": {"kv_cache_group": []},
                "exclude": ["lm_head"],
                "layer_type_quant_config": {},
            },
            "drafts with `model.layers.78.self_attn.fused_qkv_a_proj`",
        ),
        (
            group(
                weights={"num_bits": 4, "type": "float", "group_size": 32, "scale_dtype": "torch.bfloat16"},
                stored_as="mxfp4-pack-quantized",
            ),
            "the quantization asked for cannot be written",
        ),
        (
            group(weights={"num_bits": 8, "type": "float", "strategy": "channel"}, stored_as="float-quantized"),
            "the target's scheme for `model.layers.78.mlp.experts` is none that vLLM can build",
        ),
        (group(ignore=["re:(["]), "`re:([` is no regular expression"),
        ({**group(), "transform_config": {"a": 1}}, "the target's weights are stored transformed"),
        ({**group(), "sparsity_config": {"targets": ["Linear"]}}, "the target is stored sparse"),
        (
            group(weights={"num_bits": 4, "type": "float", "group_size": 16}, stored_as="nvfp4-pack-quantized"),
            "the target's scheme for `model.layers.78.self_attn.fused_qkv_a_proj` is none that vLLM can build",
        ),
    ],
)
def test_target_that_no_draft_can_be_made_for_is_named(tiny, scheme, block, what):
    with pytest.raises(MtpforgeError) as caught:
        scheme(tiny, **block)
    assert caught.value.what.startswith(what)
    assert caught.value.fix


def test_scheme_of_the_tiny_model_speaks_of_its_own_layer(tinyglm, target_of):
    config = json.loads((tinyglm("int4-int8mix") / "config.json").read_text())
    found = VLLM.demands(target_of(config), None, family_of(config))
    assert found.name == "int8-channel"


def test_format_of_the_block_counts_only_for_groups_without_their_own(tiny, scheme):
    """get_scheme_dict of vLLM 0.33.0 looks at the block's format where the group's is None."""
    own = group(stored_as="pack-quantized")
    own["config_groups"]["group_0"]["format"] = "pack-quantized"
    found = scheme(tiny, **{**own, "format": "marlin-24"})
    assert found.of("self_attn.o_proj").quantization.format == "pack_quantized"
    with pytest.raises(MtpforgeError, match="for format marlin-24"):
        scheme(tiny, **{**group(), "format": "marlin-24"})


def test_empty_transforms_and_sparsity_are_none(tiny, scheme):
    plain = scheme(tiny, **group())
    assert scheme(tiny, **{**group(), "transform_config": {}, "sparsity_config": {}}).rules == plain.rules
