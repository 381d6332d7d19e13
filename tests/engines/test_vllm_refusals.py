"""Hand edits and rare schemes of a target, each answered as vLLM 0.33.0 answers it; its file and line beside each."""

from __future__ import annotations

import json

import pytest

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.engines.vllm.demands import scheme_under
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of

VLLM = ENGINES["vllm"]
P = "model.layers.78."
EXPERTS = {f"mlp.experts.*.{p}_proj" for p in ("gate", "up", "down")}
FP8_TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
INT8_TOKEN = {**FP8_TOKEN, "type": "int"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}


QUARK = {
    "quant_method": "quark",
    "export": {"kv_cache_group": [], "pack_method": "reorder"},
    "exclude": [],
    "layer_type_quant_config": {},
}


@pytest.fixture
def scheme(release_config, tmp_path):
    """(block of config.json, side files) -> the scheme beside a target that is a folder."""

    def resolve(block, **side_files):
        config = {k: v for k, v in release_config("target-bf16").items() if k != "quantization_config"}
        config |= {} if block is None else {"quantization_config": block}
        (tmp_path / "config.json").write_text(json.dumps(config))
        for name, side in side_files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(side))
        return VLLM.demands(open_checkpoint(str(tmp_path)), None, family_of(config))

    return resolve


def group(weights, activations=None, stored_as="pack-quantized", targets=("Linear",), **more):
    args = {"targets": list(targets), "weights": weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "format": stored_as, "config_groups": {"group_0": args}, **more}


def quantized(found):
    return {rule.pattern: rule.quantization for rule in found.rules if not rule.quantization.is_dense}


MIXED = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "ignore": [f"{P[:-1]}*"]}
LAYERS = {f"{P}mlp.experts.0.gate_proj": {"quant_algo": "NVFP4", "group_size": 16}}
SIDE = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": LAYERS}}


def test_side_file_with_the_layers_is_read_whole_so_that_an_ignore_beside_it_is_not(scheme):
    """model_loader/weight_utils.py, get_quant_config: without `quantized_layers` it falls through to the side file."""
    assert quantized(scheme(MIXED, hf_quant_config=SIDE)).keys() == EXPERTS
    assert quantized(scheme({**MIXED, "quantized_layers": LAYERS}, hf_quant_config=SIDE)) == {}


@pytest.mark.parametrize(
    "side_files",
    [
        {},
        {"hf_quant_config": {**SIDE, "quantization": {"quant_algo": "MIXED_PRECISION"}}},
        {"hf_quant_config": {**SIDE, "producer": {"name": "somebody"}}},
    ],
    ids=["no file", "without layers", "of another producer"],
)
def test_mixed_precision_without_layers_anywhere_is_refused(scheme, side_files):
    """quantization/modelopt.py:1684; `Cannot find the config file for modelopt_mixed` where there is none."""
    with pytest.raises(MtpforgeError, match="MIXED_PRECISION quant_algo requires a non-empty 'quantized_layers'"):
        scheme(MIXED, **side_files)


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (INT4, FP8_TOKEN),  # CompressedTensorsW4A8Fp8, compressed_tensors.py:818
        (INT4, INT8_TOKEN),  # CompressedTensorsWNA8Int, compressed_tensors.py:841
        ({**INT4, "symmetric": False}, INT8_TOKEN),
        ({"num_bits": 8, "type": "int", "strategy": "channel"}, INT8_TOKEN),
    ],
)
def test_packed_integers_beside_dynamic_activations_are_made_as_those_alone(scheme, weights, activations):
    found = quantized(scheme(group(weights, activations, targets=[f"re:{P}self_attn[.]o_proj"])))
    alone = quantized(scheme(group(weights, None, targets=[f"re:{P}self_attn[.]o_proj"])))
    assert found == alone
    assert found["self_attn.o_proj"].format == "pack_quantized"


def test_w4a8_experts_are_made_where_vllm_builds_them(scheme):
    """compressed_tensors_moe_w4a8_fp8.py:50: groups of 128 alone; int8 activations beside experts on CPUs alone."""
    assert quantized(scheme(group(INT4, FP8_TOKEN))).keys() >= EXPERTS
    with pytest.raises(MtpforgeError, match="needs groups of 128, not 64"):
        scheme(group({**INT4, "group_size": 64}, FP8_TOKEN))
    with pytest.raises(MtpforgeError, match="Unsupported FusedMoe scheme"):
        scheme(group(INT4, INT8_TOKEN))


def test_w4a8_experts_need_columns_in_multiples_of_256(release_config):
    """compressed_tensors_moe_w4a8_fp8.py:67."""
    config = release_config("target-bf16") | {"moe_intermediate_size": 1920}
    with pytest.raises(MtpforgeError, match="multiples of 256 columns, not 1920"):
        scheme_under(config, group(INT4, FP8_TOKEN), family_of(config))


FP8 = {"num_bits": 8, "type": "float"}
FP8_METHOD = {"quant_method": "fp8", "activation_scheme": "dynamic"}
LEGACY = {"producer": {"name": "modelopt"}}
REFUSED = {
    # Line 361 of fused_moe/oracle/int_wna16.py
    "experts of 8 bits with zero points": (
        group({**INT4, "num_bits": 8, "symmetric": False}), "No WNA16 MoE backend supports"),
    # Line 75 of compressed_tensors_moe_w8a8_fp8.py
    "FP8 experts tensor x token": (
        group({**FP8, "strategy": "tensor"}, FP8_TOKEN, "float-quantized"), "not tensor and token"),
    "FP8 experts channel x dynamic tensor": (
        group({**FP8, "strategy": "channel"}, {**FP8_TOKEN, "strategy": "tensor"}, "float-quantized"),
        "not channel and tensor"),
    "FP8 experts channel x group": (
        group({**FP8, "strategy": "channel"}, {**FP8_TOKEN, "strategy": "group", "group_size": 128},
              "float-quantized"), "not channel and group"),
    # Line 127 of compressed_tensors_moe_wna16.py
    "experts of odd bits per channel": (
        group({"num_bits": 6, "type": "int", "strategy": "channel"}), "experts of 6 bits need groups"),
    # Line 135 of fp8.py
    "fp8 without activation_scheme": ({"quant_method": "fp8"}, "Cannot find any of ['activation_scheme']"),
    "fp8 blocks with static activations": (
        {**FP8_METHOD, "activation_scheme": "static", "weight_block_size": [128, 128]}, "only supports dynamic"),
    # Line 546 of fused_moe/oracle/fp8.py
    "fp8 blocks of one row on experts": ({**FP8_METHOD, "weight_block_size": [1, 128]}, "No FP8 MoE backend supports"),
    # Line 880 of compressed_tensors.py: the block's `mixed-precision` is the format of a group that names none
    "mixed precision, no format in the group": (group(INT4, stored_as="mixed-precision"), "for format mixed-precision"),
    # distributed/utils.py, verify_group_size_divides_partition
    "groups that do not divide": (
        group({**INT4, "group_size": 2048}, targets=[f"re:{P}self_attn[.]kv_b_proj"]),
        "groups of 2048 do not divide its 512 columns"),
    # Line 1437 of config/model.py
    "sparseml": ({**group(INT4), "quant_method": "sparseml"}, "Unknown quantization method"),
    # Line 346 of compressed_tensors.py, whatever the group targets
    "activation ordering": (group({**INT4, "actorder": "group"}, targets=["re:nothing"]), "no longer supported"),
    "asymmetric NVFP4": (
        group({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": False},
              stored_as="nvfp4-pack-quantized"), "No compressed-tensors compatible scheme was found"),
    # Line 394 of modelopt.py
    "an algorithm that is none": ({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}, "currently only supports"),
    # Line 272 of quark.py
    "quark without export": ({"quant_method": "quark", "exclude": []}, "The export key should be included"),
    # Line 280 of quark.py
    "quark without kv_cache_group": (
        {"quant_method": "quark", "export": {}, "exclude": []}, "object of type 'NoneType' has no len()"),
    # Line 318 of quark.py
    "a cache that no entry quantizes": (
        {"quant_method": "quark", "export": {"kv_cache_group": ["*kv_b_proj"]}, "exclude": []},
        "no kv_cache quantization settings were found"),
    "quark without exclude": ({"quant_method": "quark", "export": {"kv_cache_group": []}}, "is not iterable"),
    # Line 770 of quark.py, _find_matched_config
    "quark without types of layers": (
        {"quant_method": "quark", "export": {"kv_cache_group": []}, "exclude": []}, "has no attribute 'get'"),
    # Line 690 of quark_moe.py
    "fp8 of rows beside fp8 of tensors on quark's experts": (
        {"quant_method": "quark", "export": {"kv_cache_group": []}, "exclude": ["re:.*proj$"],
         "layer_type_quant_config": {}, "global_quant_config": {
            "weight": {"dtype": "fp8_e4m3", "qscheme": "per_channel", "is_dynamic": False},
            "input_tensors": {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": True}}},
        "only per-tensor, per-channel and per-block scales"),
}  # fmt: skip


@pytest.mark.parametrize(("block", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_vllm_does_not_build_is_refused_in_its_name(scheme, block, why):
    with pytest.raises(MtpforgeError) as caught:
        scheme(block)
    assert "vLLM" in f"{caught.value.what} {caught.value.why}"
    assert why in caught.value.why
    assert caught.value.fix


def test_weight_only_nvfp4_in_the_side_file_alone_is_refused(scheme):
    """transformers_utils/model_arch_config_convertor.py:270."""
    with pytest.raises(MtpforgeError) as caught:
        scheme(None, hf_quant_config={**LEGACY, "quantization": {"quant_algo": "W4A16_NVFP4"}})
    assert "Unknown ModelOpt quant algo: W4A16_NVFP4" in caught.value.why
    assert caught.value.fix.startswith("add a `quantization_config`")


def test_parts_of_one_matrix_with_two_configs_of_quark_are_refused(scheme):
    """quantization/quark/quark.py:793."""
    fp4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}
    block = {"quant_method": "quark", "export": {"kv_cache_group": []}, "exclude": ["re:.*self_attn.*"]}
    block["layer_type_quant_config"] = {}
    block["global_quant_config"] = {"weight": fp4, "input_tensors": None}
    assert {q.format for q in quantized(scheme(block)).values()} == {"quark_mxfp4"}
    block["layer_quant_config"] = {"*.up_proj": {"weight": fp4, "input_tensors": {**fp4, "is_dynamic": True}}}
    with pytest.raises(MtpforgeError, match="different configs") as caught:
        scheme(block)
    assert "`Found a different quantization configuration`" in caught.value.why


@pytest.mark.parametrize("algo", ["FP8_PER_CHANNEL_PER_TOKEN", "fp8_pb_wo"])
def test_fp8_of_rows_and_blocks_is_made_of_modelopts_linears_alone(scheme, algo):
    """quantization/modelopt.py:481: experts are built for one scale a tensor, whatever the algorithm."""
    block = {"quant_method": "modelopt", "quant_algo": algo, "ignore": [f"{P}mlp.experts*"]}
    assert {q.format for q in quantized(scheme(block)).values()} == {"modelopt_fp8"}
    del block["ignore"]
    with pytest.raises(MtpforgeError, match=f"drafts with experts in ModelOpt's {algo.upper()} cannot be made yet"):
        scheme(block)


def test_mxfp8_in_a_nested_block_needs_its_two_fields(scheme):
    """quantization/modelopt.py:1273."""
    inside = {"quant_algo": "MXFP8", "kv_cache_quant_algo": None, "exclude_modules": []}
    nested = {"quant_method": "modelopt", "quantization": inside}
    assert quantized(scheme(nested)).keys() >= EXPERTS
    del inside["exclude_modules"]
    with pytest.raises(MtpforgeError, match="`MXFP8 quantization requires the following fields`: exclude_modules"):
        scheme(nested)


def test_nvfp4_in_the_side_file_needs_its_three_fields(scheme):
    """quantization/modelopt.py:815."""
    inside = {"quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": None, "exclude_modules": []}
    assert quantized(scheme(None, hf_quant_config={**LEGACY, "quantization": inside})).keys() >= EXPERTS
    del inside["kv_cache_quant_algo"]
    with pytest.raises(MtpforgeError, match="requires the following fields`: kv_cache_quant_algo"):
        scheme(None, hf_quant_config={**LEGACY, "quantization": inside})


def test_empty_entry_of_modelopts_list_leaves_all_dense(scheme):
    """quantization/modelopt.py:213: the empty string is part of every name."""
    assert quantized(scheme({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [""]})) == {}


@pytest.mark.parametrize("name", ["quantization_config", "quantize_config", "quant_config"])
def test_block_in_a_file_that_vllm_does_not_read_leaves_all_dense(scheme, name):
    """transformers_utils/config.py:957: hf_quant_config.json alone."""
    assert quantized(scheme(None, **{name: group(INT4)})) == {}


def test_block_without_a_method_leaves_all_dense(scheme):
    """config/model.py:1428: an empty method is none."""
    block = group(INT4)
    del block["quant_method"]
    assert quantized(scheme(block)) == {}


def test_block_structure_may_be_a_text(scheme):
    """compressed-tensors 0.17.0, QuantizationArgs.validate_block_structure."""
    found = scheme(group({**FP8, "strategy": "block", "block_structure": "128x128"}, FP8_TOKEN, "float-quantized"))
    assert found.of("self_attn.o_proj").quantization.block == (128, 128)


def test_class_of_digits_in_an_expression_is_understood(scheme):
    """quantization/utils/config_utils.py:9: the `regex` package."""
    found = quantized(scheme(group(INT4, ignore=["re:model[.]layers[.][[:digit:]]+[.]mlp[.].*"])))
    assert found
    assert not any(template.startswith("mlp.") for template in found)


def test_experts_without_an_entry_take_that_of_their_mlp(scheme):
    """quantization/modelopt.py:1786: any entry below the parent of `experts`."""
    layers = {f"{P}mlp.shared_experts.down_proj": {"quant_algo": "FP8"}}
    found = quantized(scheme({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}))
    assert found.keys() == EXPERTS | {"mlp.shared_experts.down_proj"}


@pytest.mark.parametrize(
    ("weight", "named"),
    [
        ({"dtype": "int4", "qscheme": "per_group", "group_size": 128, "symmetric": False}, "Quark's INT4"),
        ([{"dtype": "uint4", "qscheme": "per_group", "group_size": 1024, "symmetric": False}], "Quark's INT4"),
        ([{"dtype": "fp4", "group_size": 16}, {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}], "Quark's NVFP4"),
        ([{"dtype": "fp8_e4m3"}, {"dtype": "int4"}], "Quark's INT4 beside FP8 activations"),
        ({"dtype": "fp6_e2m3", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}, "Quark's MXFP6"),
        ({"dtype": "int3"}, "Quark's weights of int3"),
        (None, "Quark's weights of no dtype"),
    ],
)
def test_what_quark_has_and_drafts_do_not_is_named(scheme, weight, named):
    """vLLM takes these: quark.py, _get_scheme_cls_from_config; quark_moe.py, get_moe_method_target."""
    with pytest.raises(MtpforgeError) as caught:
        scheme(QUARK | {"global_quant_config": {"weight": weight}})
    assert caught.value.what.startswith("drafts with `")
    assert caught.value.what.endswith(f"` in {named} cannot be made yet")
