"""Which parts are which format: every stored module of real checkpoints, and nothing that is almost one."""

import json

import pytest
import whole_weights

from mtpforge import formats
from mtpforge.errors import MtpforgeError
from mtpforge.tensors import Quantization, Spec

INT4 = {
    "weight_packed": Spec("I32", (64, 16)),
    "weight_scale": Spec("BF16", (64, 4)),
    "weight_zero_point": Spec("I32", (8, 4)),
    "weight_shape": Spec("I64", (2,)),
}
FP8 = {"weight": Spec("F8_E4M3", (64, 128)), "weight_scale_inv": Spec("F32", (1, 1))}
NVFP4 = {
    "weight": Spec("U8", (64, 64)),
    "weight_scale": Spec("F8_E4M3", (64, 8)),
    "weight_scale_2": Spec("F32", ()),
    "input_scale": Spec("F32", ()),
}
CT_NVFP4 = {
    "weight_packed": Spec("U8", (64, 64)),
    "weight_scale": Spec("F8_E4M3", (64, 8)),
    "weight_global_scale": Spec("F32", (1,)),
}
INT8 = {"weight": Spec("I8", (64, 128)), "weight_scale": Spec("BF16", (64, 1))}
DENSE = {"weight": Spec("BF16", (64, 128))}
SHAPE = (64, 128)
ALL = {"INT4": INT4, "FP8": FP8, "NVFP4": NVFP4, "CT_NVFP4": CT_NVFP4, "INT8": INT8, "DENSE": DENSE}


def only(parts, block=None):
    return whole_weights.recognise(parts, SHAPE, block or {})[1]


def test_each_of_them_is_recognised():
    found = {name: f"{only(parts).format}: {formats.label(only(parts))}" for name, parts in ALL.items()}
    assert found == {
        "INT4": "pack_quantized: INT4 g32 asymmetric",
        "FP8": "fp8_block: FP8 block 128x128",
        "NVFP4": "modelopt_nvfp4: NVFP4 g16 static",
        "CT_NVFP4": "nvfp4: NVFP4 g16",
        "INT8": "int_quantized: INT8 channel",
        "DENSE": "dense: BF16",
    }


@pytest.mark.parametrize("name", sorted(ALL))
def test_an_extra_part_is_no_part_of_the_format(name):
    with pytest.raises(MtpforgeError, match="a weight is stored in no known way"):
        only(ALL[name] | {"pre_quant_scale": Spec("F32", (128,))})


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(n, s) for n, parts in ALL.items() for s in parts if s not in {"input_scale", "weight_zero_point"}],
)
def test_a_missing_part_is_noticed(name, suffix):
    parts = {s: spec for s, spec in ALL[name].items() if s != suffix}
    if not parts:
        return
    with pytest.raises(MtpforgeError, match="a weight is stored in no known way"):
        only(parts)


@pytest.mark.parametrize(("name", "suffix"), [(n, s) for n, parts in ALL.items() for s in parts])
def test_another_dtype_or_shape_is_noticed(name, suffix):
    spec = ALL[name][suffix]
    for lie in (Spec("U16", spec.shape), Spec(spec.dtype, (*spec.shape, 3)), Spec(spec.dtype, (5, 7))):
        with pytest.raises(MtpforgeError, match="a weight is stored in no known way"):
            only(ALL[name] | {suffix: lie})


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (
            {s: INT4[s] for s in ("weight_packed", "weight_zero_point", "weight_shape")},
            "nearest is pack_quantized (INT4 g32 asymmetric): missing weight_scale",
        ),
        (
            INT4 | {"weight_packed": Spec("I32", (63, 16))},
            "nearest is pack_quantized (INT4 g32 asymmetric): weight_packed is [63, 16] instead of [64, 16]",
        ),
        (
            FP8 | {"weight_scale_inv": Spec("F32", (2, 1))},
            "nearest is fp8_block (FP8 block 128x128): weight_scale_inv is [2, 1] instead of [1, 1]",
        ),
        (
            NVFP4 | {"weight_scale": Spec("U8", (64, 8))},
            "nearest is modelopt_nvfp4 (NVFP4 g16 static): weight_scale is U8 instead of F8_E4M3",
        ),
        (
            CT_NVFP4 | {"k\x1b[31m": Spec("F32", (1,))},
            "nearest is nvfp4 (NVFP4 g16): unexpected k\\x1b[31m",
        ),
        (
            {"weight": Spec("BF16", (128, 64))},
            "nearest is dense (BF16): weight is [128, 64] instead of [64, 128]",
        ),
        (
            INT8 | {"weight_scale": Spec("BF16", (64,))},
            "nearest is int_quantized (INT8 channel): weight_scale is [64] instead of [64, 1]",
        ),
    ],
)
def test_the_nearest_miss_is_explained(parts, why):
    block = {"config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": False}}}}
    assert formats.explain(parts, SHAPE, block if "weight_shape" in parts else {}) == why


def test_the_config_decides_where_bytes_leave_a_choice():
    """7 bits in the old layout take 4 values a word, as 8 bits do; one scale a row is channel, or one large group."""
    parts = {
        "weight_packed": Spec("I32", (64, 32)),
        "weight_scale": Spec("BF16", (64, 1)),
        "weight_shape": Spec("I64", (2,)),
    }

    def config(**weights):
        return {"config_groups": {"group_0": {"weights": weights}}}

    assert formats.label(only(parts)) == "INT8 channel"
    assert formats.label(only(parts, config(num_bits=7))) == "INT7 channel"
    assert formats.label(only(parts, config(num_bits=8, group_size=128))) == "INT8 g128"
    assert formats.label(only(parts, config(num_bits=3))) == "INT8 channel"


def test_bytes_win_over_a_config_that_says_otherwise():
    block = {"weight_block_size": [64, 64], "config_groups": {"g": {"weights": {"num_bits": 8, "group_size": 64}}}}
    assert formats.label(only(FP8 | {"weight": Spec("F8_E4M3", (64, 128))}, block)) == "FP8 block 128x128"
    assert formats.label(only(INT4, block)) == "INT4 g32 asymmetric"


def test_old_zero_points_that_bands_would_cut_are_refused():
    """10 rows of 3 bit zero points share a word, bands have 128 rows."""
    tall = {
        "weight_packed": Spec("I32", (640, 13)),
        "weight_scale": Spec("BF16", (640, 4)),
        "weight_zero_point": Spec("I32", (64, 4)),
        "weight_shape": Spec("I64", (2,)),
    }
    assert formats.FORMATS["pack_quantized"].recognise(tall, (640, 128), {}) is None
    low = tall | {
        "weight_packed": Spec("I32", (128, 13)),
        "weight_scale": Spec("BF16", (128, 4)),
        "weight_zero_point": Spec("I32", (13, 4)),
    }
    assert formats.label(formats.FORMATS["pack_quantized"].recognise(low, (128, 128), {})) == "INT3 g32 asymmetric"


@pytest.mark.parametrize(
    "block",
    [{"config_groups": []}, {"config_groups": {"g": 3}}, {"weight_block_size": ["a", 0]}, {"weight_block_size": 7}],
)
def test_a_config_of_odd_types_is_passed_over(block):
    assert formats.label(only(FP8, block)) == "FP8 block 128x128"
    assert formats.label(only(INT4, block)) == "INT4 g32 asymmetric"


GPTQ = {
    "qweight": Spec("I32", (16, 64)),
    "qzeros": Spec("I32", (4, 8)),
    "scales": Spec("F16", (4, 64)),
    "g_idx": Spec("I32", (128,)),
}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "gptq", "checkpoint_format": "gptq"}, "gptq"),
        ({"quant_method": "GPTQ", "checkpoint_format": "gptq_v2"}, "gptq_v2"),
        ({"quant_method": "auto-round", "packing_format": "auto_round"}, "auto_round"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:gptqmodel"}, "auto_round"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}, "gptq"),
    ],
)
def test_the_config_says_which_gptq_it_is(block, expected):
    """Their shapes are the same, their zero points are one apart; bits and groups that it states are not looked at."""
    without = {suffix: spec for suffix, spec in GPTQ.items() if suffix != "g_idx"}
    for parts in (GPTQ, without):
        form, found = whole_weights.recognise(parts, SHAPE, block | {"bits": 8, "group_size": 128})
        assert (form.name, formats.label(found)) == (expected, "INT4 g32 asymmetric")


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"quant_method": "auto-round"},
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"},
        {"bits": 4, "group_size": 32},
    ],
)
def test_gptq_that_no_config_tells_apart_is_refused(block):
    with pytest.raises(MtpforgeError, match="a weight is stored in no known way") as caught:
        only(GPTQ, block)
    assert caught.value.why == (
        "these are parts of gptq, gptq_v2 and auto_round alike, and `quantization_config` in config.json does not say"
        " which"
    )


@pytest.mark.parametrize("stated", [{"checkpoint_format": "gptq_p"}, {"checkpoint_format": "marlin"}])
def test_gptq_of_another_kind_than_its_shapes_is_refused(stated):
    """4 bits have no planes, 5 bits nothing else; marlin's words are shuffled."""
    five = {"qweight": Spec("I32", (20, 64)), "qzeros": Spec("I32", (4, 10)), "scales": Spec("F16", (4, 64))}
    for parts, odd in ((GPTQ, stated), (five, {"checkpoint_format": "gptq_v2"}), (five, {})):
        with pytest.raises(MtpforgeError, match="a weight is stored in no known way"):
            only(parts, {"quant_method": "gptq"} | odd)
    assert formats.label(only(five, {"quant_method": "gptq", "checkpoint_format": "gptq_p"})) == "INT5 g32 asymmetric"


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"sym": True}, "INT4 g32"),
        ({"sym": False}, "INT4 g32 asymmetric"),
        ({}, "INT4 g32 asymmetric"),
        ({"sym": True, "dynamic": {"+:.*down.*": {"sym": False}, "-:.*gate": {}}}, "INT4 g32 asymmetric"),
        ({"sym": True, "dynamic": {"+:.*down.*": {"bits": 8}}}, "INT4 g32"),
        ({"sym": True, "extra_config": {"a": {"sym": False}}, "dynamic": 7}, "INT4 g32 asymmetric"),
    ],
)
def test_gptq_is_called_symmetric_where_all_of_the_config_says_so(stated, expected):
    assert formats.label(only(GPTQ, {"quant_method": "gptq"} | stated)) == expected


@pytest.mark.parametrize("suffix", ["qweight", "qzeros", "scales"])
def test_gptq_with_a_part_missing_or_odd_is_noticed(suffix):
    block = {"quant_method": "gptq"}
    spec = GPTQ[suffix]
    lies = [{s: part for s, part in GPTQ.items() if s != suffix}]
    odd = (Spec("U16", spec.shape), Spec(spec.dtype, (*spec.shape, 3)), Spec(spec.dtype, (5, 7)), Spec(spec.dtype, ()))
    lies += [GPTQ | {suffix: lie} for lie in odd]
    for parts in [*lies, GPTQ | {"g_idx": Spec("I32", (64,))}, GPTQ | {"g_idx": Spec("I64", (128,))}]:
        with pytest.raises(MtpforgeError, match="a weight is stored in no known way"):
            only(parts, block)


def test_the_nearest_gptq_is_explained():
    block = {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}
    assert formats.explain(GPTQ | {"qzeros": Spec("I32", (4, 9))}, SHAPE, block) == (
        "nearest is gptq_v2 (INT4 g32 asymmetric): qzeros is [4, 9] instead of [4, 8]"
    )


MLX = {"weight": Spec("U32", (64, 12)), "scales": Spec("BF16", (64, 4)), "biases": Spec("BF16", (64, 4))}


@pytest.mark.parametrize("suffix", sorted(MLX))
def test_mlx_with_a_part_missing_or_odd_is_noticed(suffix):
    assert formats.label(only(MLX, {"bits": 4, "group_size": 64})) == "INT3 g32 asymmetric"
    spec = MLX[suffix]
    odd = (Spec("I32", spec.shape), Spec(spec.dtype, (*spec.shape, 3)), Spec(spec.dtype, (5, 7)), Spec(spec.dtype, ()))
    for parts in [{s: part for s, part in MLX.items() if s != suffix}, *(MLX | {suffix: lie} for lie in odd)]:
        with pytest.raises(MtpforgeError, match="a weight is stored in no known way"):
            only(parts)


def specs_of(path):
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return {name: Spec(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}


def modules(specs, dense_shapes):
    """Module -> its parts, for every module that has a matrix in the dense layout."""
    found = {}
    for name, spec in specs.items():
        module, _, suffix = name.rpartition(".")
        if f"{module}.weight" in dense_shapes and suffix != "e_score_correction_bias":  # of the router, no part of it
            found.setdefault(module, {})[suffix] = spec
    return found


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("bf16", {"BF16"}),
        ("fp8", {"BF16", "FP8 block 128x128"}),
        ("nvfp4", {"BF16", "NVFP4 g16 static"}),
        ("int4-int8mix", {"BF16", "INT4 channel", "INT8 channel"}),
        ("awq-int4", {"BF16", "INT4 g32 asymmetric"}),
    ],  # groups of 128 in rows of 128 are one scale a row: the same bytes either way
)
def test_every_weight_of_the_tiny_model_is_recognised(tinyglm, layout, expected):
    dense = {}
    for path in tinyglm("bf16").glob("*.safetensors"):
        dense |= {name: spec for name, spec in specs_of(path).items() if len(spec.shape) == 2}
    stored = {}
    for path in tinyglm(layout).glob("*.safetensors"):
        stored |= specs_of(path)
    config = json.loads((tinyglm(layout) / "config.json").read_text())
    found = set()
    for module, parts in modules(stored, dense).items():
        _, quantization = whole_weights.recognise(
            parts, dense[f"{module}.weight"].shape, config.get("quantization_config") or {}
        )
        found.add(formats.label(quantization))
    assert found == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp8-zai-org", {"BF16", "FP8 block 128x128"}),
        ("nvfp4-experts-lukealonso", {"BF16", "NVFP4 g16 static"}),
        ("int4-g32-asym-cosmicraisins", {"BF16", "INT4 g32 asymmetric"}),
        ("int8-channel-quanttrio", {"BF16", "INT8 channel"}),
    ],
)
def test_every_weight_of_published_layers_is_recognised(census, name, expected):
    dense = {n: Spec(dtype, shape) for n, (dtype, shape) in census("bf16-zai-org").items() if len(shape) == 2}
    stored = {n: Spec(dtype, shape) for n, (dtype, shape) in census(name).items()}
    found = {
        formats.label(whole_weights.recognise(parts, dense[f"{module}.weight"].shape, {})[1])
        for module, parts in modules(stored, dense).items()
    }
    assert found == expected


def test_a_quantization_is_a_key():
    assert {only(INT4): 1}[Quantization("pack_quantized", 4, "", "group", 32, symmetric=False, scale_dtype="BF16")] == 1
