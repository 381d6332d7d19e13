from __future__ import annotations

import pytest

from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.quantization import (
    Args,
    Group,
    Layer,
    QuantConfig,
    fp8_quantization,
    modelopt_quantization,
    parse,
    quantization_of,
)
from mtpforge.errors import MtpforgeError
from mtpforge.tensors import Quantization

INT4 = Quantization("pack_quantized", 4, strategy="group", group_size=32, symmetric=False, scale_dtype="BF16")
INT4_128 = Quantization("pack_quantized", 4, strategy="group", group_size=128, scale_dtype="BF16")
INT8_128 = Quantization("pack_quantized", 8, strategy="group", group_size=128, scale_dtype="BF16")
INT8 = Quantization("pack_quantized", 8, strategy="channel", scale_dtype="BF16")
NVFP4 = Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3", input_scale="static")
FP8 = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic")
MODELOPT = Quantization(
    "modelopt_nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3", input_scale="static"
)
FP8 = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic")

# Of every published config: method, modules listed as dense, how its groups (or its only way) store a weight.
RELEASES = {
    "draft-int4-cosmicraisins": ("compressed-tensors", 6, [INT4]),
    "draft-int4-cosmicraisins-218-experts": ("compressed-tensors", 6, [INT4]),
    "source-nvfp4-reap-469b-156-experts": ("modelopt", 160, [MODELOPT]),
    "target-awq-int4-218-experts": ("compressed-tensors", 688, [INT4]),
    "target-awq-int4-fp8-mtp-graft": ("compressed-tensors", 688, [INT4]),
    "target-awq-int4-ignore-to-77": ("compressed-tensors", 688, [INT4]),
    "target-awq-int4-mtp-ignored": ("compressed-tensors", 1468, [INT4]),
    "target-awq-int4-no-nextn-field": ("compressed-tensors", 688, [INT4]),
    "target-bf16": ("", 0, []),
    "target-deepseek-v3": ("fp8", 0, [FP8]),
    "target-deepseek-v3.2": ("fp8", 0, [FP8]),
    "target-fp8": ("fp8", 541, [FP8]),
    "target-glm-4.5": ("", 0, []),
    "target-glm-4.5-air": ("", 0, []),
    "target-glm-4.7-flash": ("", 0, []),
    "target-glm-5.3-flash-fp8": ("fp8", 11, [FP8]),
    "target-int4-int8mix-quanttrio": ("compressed-tensors", 8, [INT4_128, INT8_128, INT8]),
    "target-int8mix-nvfp4-festr2": ("compressed-tensors", 8, [NVFP4, INT8_128, INT8]),
    "target-mxfp4-amd": ("quark", 1544, []),
    "target-nvfp4-lorbus": ("modelopt", 16, [MODELOPT]),
    "target-nvfp4-lukealonso": ("modelopt", 160, [MODELOPT]),
    "target-nvfp4-nvidia": ("modelopt", 156, [MODELOPT]),
    "target-nvfp4-reap-168-stale-num-experts": ("modelopt", 156, [MODELOPT]),
    "target-w4a16-mtp-canada-quant": (
        "compressed-tensors", 7,
        [Quantization("pack_quantized", 4, strategy="group", group_size=128, symmetric=False, scale_dtype="BF16")],
    ),
    "target-w4afp8": ("w4afp8", 541, []),
}  # fmt: skip


CT = {"quant_method": "compressed-tensors"}


def stored(config: QuantConfig) -> list[Quantization]:
    match config.method:
        case "fp8":
            return [fp8_quantization(config)]
        case "modelopt":
            return [modelopt_quantization(config.quant_algo, config.group_size)]
    return [quantization_of(group, group.format or config.format) for group in config.groups]


def group_of(weights: dict, **others) -> Group:
    block = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights, **others}}}
    return parse(block).groups[0]


@pytest.mark.parametrize("release", RELEASES)
def test_every_published_config_is_understood(release_config, release):
    config = parse(metadata.quantization(release_config(release), lambda name: None))
    assert (config.method, len(config.ignore), stored(config)) == RELEASES[release]


def test_every_stored_config_is_among_the_releases(request):
    folder = request.config.rootpath / "tests" / "data" / "configs"
    assert {p.name.removesuffix(".config.json") for p in folder.glob("*.config.json")} == set(RELEASES)


def test_groups_keep_the_order_of_the_config(release_config):
    config = parse(release_config("target-int4-int8mix-quanttrio")["quantization_config"])
    assert [g.name for g in config.groups] == ["w4a16_experts", "w8a16_linears", "w8a16_mtp_channel"]
    assert config.groups[2].targets[0].startswith("re:model[.]layers[.](?:78)")


def test_no_block_is_no_method():
    assert parse({}) == QuantConfig()


@pytest.mark.parametrize("size", [None, -1, 32])
@pytest.mark.parametrize("strategy", [None, "group", "channel", "tensor", "GROUP"])
def test_the_strategy_is_inferred_as_compressed_tensors_does(size, strategy):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy

    args = {"num_bits": 4, "group_size": size, "strategy": strategy}
    try:
        theirs = QuantizationStrategy(QuantizationArgs.model_validate(args).strategy).value
    except ValueError:
        return  # we may read what the library refuses: the engine decides
    assert group_of(args).weights.strategy == theirs


FLOAT8 = {"num_bits": 8, "type": "float"}
DYNAMIC = {**FLOAT8, "strategy": "token", "dynamic": True}
STATIC = {**FLOAT8, "strategy": "tensor", "dynamic": False}


@pytest.mark.parametrize(
    ("weights", "activations", "wanted"),
    [
        (
            {"strategy": "tensor"},
            STATIC,
            Quantization("fp8_scaled", 8, strategy="tensor", scale_dtype="F32", input_scale="static"),
        ),
        (
            {"strategy": "channel"},
            DYNAMIC,
            Quantization("fp8_scaled", 8, strategy="channel", scale_dtype="F32", input_scale="dynamic"),
        ),
        ({"strategy": "channel"}, None, Quantization("fp8_scaled", 8, strategy="channel", scale_dtype="F32")),
        (
            {"strategy": "block", "block_structure": [128, 128]},
            {**FLOAT8, "strategy": "group", "group_size": 128, "dynamic": True},
            Quantization("fp8_scaled", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic"),
        ),
        (
            {"strategy": "tensor", "scale_dtype": "torch.bfloat16"},
            None,
            Quantization("fp8_scaled", 8, strategy="tensor", scale_dtype="BF16"),
        ),
    ],
)
def test_fp8_of_compressed_tensors(weights, activations, wanted):
    assert quantization_of(group_of({**FLOAT8, **weights}, input_activations=activations), "float-quantized") == wanted


def test_int8_with_dynamic_activations():
    activations = {"num_bits": 8, "strategy": "token", "dynamic": True}
    group = group_of({"num_bits": 8, "strategy": "channel"}, input_activations=activations)
    assert quantization_of(group, "int-quantized") == Quantization(
        "int_quantized", 8, strategy="channel", scale_dtype="BF16", input_scale="dynamic"
    )


def test_nvfp4_without_activations_needs_no_input_scale():
    group = group_of({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16})
    assert quantization_of(group, "nvfp4-pack-quantized").input_scale == "none"


@pytest.mark.parametrize(("bits", "stored_as"), [(4, "mxfp4-pack-quantized"), (8, "mxfp8-quantized")])
@pytest.mark.parametrize("inputs", ["none", "dynamic"])
def test_microscaled_weights_are_stored_alike_whatever_the_activations(bits, stored_as, inputs):
    weights = {"num_bits": bits, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    activations = {"input_activations": {**weights, "dynamic": True}} if inputs == "dynamic" else {}
    assert quantization_of(group_of(weights, **activations), stored_as) == Quantization(
        f"mxfp{bits}", bits, strategy="group", group_size=32, scale_dtype="U8", input_scale=inputs
    )


INT_GROUP = {"num_bits": 4, "strategy": "group", "group_size": 32}


@pytest.mark.parametrize(
    ("weights", "format_name", "others", "why"),
    [
        (None, "pack-quantized", {}, "it quantizes no weights"),
        (INT_GROUP, "marlin-24", {}, "format marlin-24 with 4-bit int weights is not written"),
        (INT_GROUP, "float-quantized", {}, "format float-quantized with 4-bit int weights is not written"),
        (
            {**INT_GROUP, "type": "float", "scale_dtype": "torch.bfloat16"},
            "mxfp4-pack-quantized",
            {},
            "format mxfp4-pack-quantized with 4-bit float weights is not",
        ),
        (
            {**INT_GROUP, "type": "float"},
            "mxfp8-quantized",
            {},
            "format mxfp8-quantized with 4-bit float weights is not",
        ),
        (
            {**INT_GROUP, "type": "float"},
            "mxfp4-pack-quantized",
            {"input_activations": {"num_bits": 8, "type": "float"}},
            "static activations beside MXFP4 are not written",
        ),
        (
            {**INT_GROUP, "actorder": "group"},
            "pack-quantized",
            {},
            "activation ordering of groups (g_idx) is not written",
        ),
        ({**INT_GROUP, "num_bits": 9}, "pack-quantized", {}, "format pack_quantized with 9 bits is not written"),
        ({"num_bits": 4}, "pack-quantized", {}, "format pack_quantized with strategy tensor is not written"),
        (
            {"num_bits": 8, "strategy": "channel"},
            "int-quantized",
            {"input_activations": {"num_bits": 8}},
            "static integer activations are not written",
        ),
        ({**FLOAT8, "group_size": 64}, "float-quantized", {}, "FP8 weights with strategy group are not written"),
        ({**FLOAT8, "strategy": "block"}, "float-quantized", {}, "block_structure and strategy block go together"),
        ({**FLOAT8, "symmetric": False}, "float-quantized", {}, "asymmetric FP8 weights are not written"),
    ],
)
def test_what_cannot_be_written_says_so(weights, format_name, others, why):
    with pytest.raises(MtpforgeError) as caught:
        quantization_of(group_of(weights, **others), format_name)
    assert why in caught.value.why
    assert caught.value.where == "config.json, quantization_config, g"
    assert "mtpforge extract" in caught.value.fix


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({"quant_method": 1}, "quant_method"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weight_block_size"),
        ({"quant_method": "fp8", "ignored_layers": "lm_head"}, "ignored_layers"),
        ({"quant_method": "modelopt", "quant_algo": ["NVFP4"]}, "quant_algo"),
        ({"quant_method": "modelopt", "ignore": {"a": 1}}, "ignore"),
        ({"quant_method": "modelopt", "quantized_layers": {"m": "FP8"}}, "quantized_layers.m"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, "config_groups"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": None}}, "config_groups.g"),
        ({**CT, "config_groups": {"g": {"targets": "Linear"}}}, "config_groups.g.targets"),
        ({**CT, "config_groups": {"g": {"weights": {"num_bits": "4"}}}}, "config_groups.g.weights.num_bits"),
        ({**CT, "config_groups": {"g": {"weights": {"num_bits": True}}}}, "config_groups.g.weights.num_bits"),
        ({**CT, "config_groups": {"g": {"weights": {"type": "complex"}}}}, "config_groups.g.weights.type"),
        ({**CT, "config_groups": {"g": {"weights": {"strategy": "row"}}}}, "config_groups.g.weights.strategy"),
        ({**CT, "config_groups": {"g": {"weights": {"strategy": "group"}}}}, "config_groups.g.weights.group_size"),
        ({**CT, "config_groups": {"g": {"weights": {"group_size": 0}}}}, "config_groups.g.weights.group_size"),
        ({**CT, "config_groups": {"g": {"weights": {"symmetric": 1}}}}, "config_groups.g.weights.symmetric"),
        (
            {**CT, "config_groups": {"g": {"weights": {"scale_dtype": "torch.int3"}}}},
            "config_groups.g.weights.scale_dtype",
        ),
        (
            {**CT, "config_groups": {"g": {"input_activations": {"dynamic": "x"}}}},
            "config_groups.g.input_activations.dynamic",
        ),
        (
            {**CT, "config_groups": {"g": {"weights": {"block_structure": "128"}}}},
            "config_groups.g.weights.block_structure",
        ),
        (
            {**CT, "config_groups": {"g": {"weights": {"block_structure": "0x1"}}}},
            "config_groups.g.weights.block_structure",
        ),
    ],
)
def test_a_wrong_type_is_named_by_its_path(block, key):
    with pytest.raises(MtpforgeError) as caught:
        parse(block)
    assert caught.value.where == f"config.json, key quantization_config.{key}"
    assert caught.value.what.startswith(f"`quantization_config.{key}` of config.json must be ")


def test_fp8_without_blocks_and_its_two_lists():
    block = {
        "quant_method": "FP8",
        "activation_scheme": "static",
        "ignored_layers": [],
        "modules_to_not_convert": ["a"],
    }
    config = parse(block)
    assert config.ignore == ("a",)
    assert fp8_quantization(config) == Quantization(
        "fp8_scaled", 8, strategy="tensor", scale_dtype="F32", input_scale="static"
    )
    with pytest.raises(MtpforgeError):
        fp8_quantization(parse({**block, "weight_block_size": [128, 128]}))


def test_modelopt_in_both_of_its_files(tinyglm):
    checkpoint_config = (tinyglm("nvfp4") / "config.json").read_bytes()
    inline = parse(metadata.quantization(metadata.config(checkpoint_config), lambda name: None))
    side = parse(metadata.config((tinyglm("nvfp4") / "hf_quant_config.json").read_bytes()))
    assert side.method == inline.method == "modelopt"
    assert side.quant_algo == inline.quant_algo == "NVFP4"
    assert side.group_size == inline.group_size == 16
    assert side.ignore == inline.ignore


def test_mixed_precision_of_modelopt():
    layers = {"m.a": {"quant_algo": "nvfp4", "group_size": 16}, "m.b": {"quant_algo": "FP8"}}
    config = parse({"quant_method": "modelopt", "quant_algo": "mixed_precision", "quantized_layers": layers})
    assert config.quant_algo == "MIXED_PRECISION"
    assert config.quantized_layers == {"m.a": Layer("NVFP4", 16), "m.b": Layer("FP8")}
    assert modelopt_quantization("fp8").format == "fp8_scaled"
    assert modelopt_quantization("W4A16_NVFP4", 16).input_scale == "none"
    assert modelopt_quantization("MXFP8", 16).group_size == 32
    assert modelopt_quantization("FP8_PER_CHANNEL_PER_TOKEN").strategy == "channel"
    assert modelopt_quantization("fp8_pb_wo").block == (128, 128)


@pytest.mark.parametrize(
    ("algo", "size", "why"),
    [
        ("nvfp4_awq", None, "ModelOpt's nvfp4_awq is not written"),
        ("NVFP4", 32, "ModelOpt's NVFP4 with groups of 32 is not written"),
        ("", None, "ModelOpt's empty algorithm is not written"),
    ],
)
def test_an_algorithm_of_modelopt_that_is_not_written(algo, size, why):
    with pytest.raises(MtpforgeError) as caught:
        modelopt_quantization(algo, size)
    assert caught.value.why == why


@pytest.mark.parametrize(
    ("block", "method", "ignore"),
    [
        ({"quant_method": "awq", "modules_to_not_convert": ["gate"]}, "awq", ("gate",)),
        ({"quant_method": "awq", "modules_to_not_convert": None}, "awq", ()),
        ({"quant_method": "quark", "exclude": ["lm_head"]}, "quark", ("lm_head",)),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["a"]}, "mxfp4", ("a",)),
        ({"quant_method": "Auto-Round"}, "auto-round", ()),
        ({"quant_method": "sparseml", "config_groups": 7}, "sparseml", ()),
        ({"quant_method": "modelopt_fp4", "quant_algo": "NVFP4"}, "modelopt", ()),
        ({"quant_method": "compressed_tensors"}, "compressed-tensors", ()),
        ({"config_groups": {}, "ignore": ["a"]}, "", ()),  # no method: engines take it for no quantization
        ({"weight_block_size": "broken"}, "", ()),
        ({"bits": 4, "group_size": 64, "mode": "affine"}, "mlx", ()),
        ({"quant_method": "exl3"}, "exl3", ()),
    ],
)
def test_other_methods_are_named_with_their_lists(block, method, ignore):
    config = parse(block)
    assert (config.method, config.ignore) == (method, ignore)
    assert config.raw == block


def test_arguments_as_written():
    written = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local",
               "scale_dtype": "torch.float8_e4m3fn", "actorder": True, "observer": "x"}  # fmt: skip
    assert group_of(written).weights == Args(
        4, "float", "tensor_group", 16, None, symmetric=True, dynamic="local", scale_dtype="F8_E4M3", actorder="group"
    )
