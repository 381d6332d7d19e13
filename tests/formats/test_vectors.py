"""Decoders give the values that the formats' own libraries gave for the same bytes (tests/data/vectors)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import whole_weights
from safetensors import safe_open
from safetensors.torch import load_file

from mtpforge import formats
from mtpforge.errors import MtpforgeError
from mtpforge.tensors import DTYPES, Quantization, Spec

VECTORS = Path(__file__).parents[1] / "data" / "vectors"
FILES = sorted(path.stem for path in VECTORS.glob("*.safetensors") if path.stem not in ("source", "gguf-all-types"))
NAMES = {getattr(torch, d.torch): d.name for d in DTYPES.values() if hasattr(torch, d.torch)}
# what the files themselves do not say
CONFIGS = {"fp8-block32x64-transformers": {"quant_method": "fp8", "weight_block_size": [32, 64]}}
COMPUTED_IN = {"autoround": torch.float16}  # libraries whose values are float32 that was rounded on the way
SIGNED = {"modelopt-w4a16-awq-uint8"}  # no library decodes it: the values are of floats, whose zeros had a sign
STACKED = 3
OPENAI = {"blocks": "weight_packed", "scales": "weight_scale"}
EXPECTED = {
    "autoround-gptq-int4-g32-asym": "INT4 g32 asymmetric",
    "autoround-gptq-int4-g32-sym": "INT4 g32",
    "autoround-int3-g32-asym": "INT3 g32 asymmetric",
    "autoround-int4-g32-asym": "INT4 g32 asymmetric",
    "autoround-int5-g32-asym": "INT5 g32 asymmetric",
    "awq-gemm-int4-g32": "INT4 g32 asymmetric",
    "ct-fp8-channel-bf16": "FP8 channel",
    "ct-fp8-channel-f32": "FP8 channel",
    "ct-fp8-tensor-f32": "FP8 tensor",
    "ct-int2-g32-asym-f32": "INT2 g32 asymmetric",
    "ct-int3-g32-asym-f32": "INT3 g32 asymmetric",
    "ct-int3-g32-asym-legacy-layout": "INT3 g32 asymmetric",
    "ct-int3-g32-sym-f32": "INT3 g32",
    "ct-int4-cols100-channel-sym-f32": "INT4 channel",
    "ct-int4-g32-asym-bf16": "INT4 g32 asymmetric",
    "ct-int4-g32-asym-f32-experts3d": "INT4 g32 asymmetric",
    "ct-int4-g32-asym-f32-scalebf16": "INT4 g32 asymmetric",
    "ct-int4-g32-asym-f32": "INT4 g32 asymmetric",
    "ct-int4-g32-sym-bf16": "INT4 g32",
    "ct-int4-g32-sym-f32": "INT4 g32",
    "ct-int5-g32-asym-f32": "INT5 g32 asymmetric",
    "ct-int7-g32-asym-f32": "INT7 g32 asymmetric",
    "ct-int8-channel-asym-f32": "INT8 channel asymmetric",
    "ct-int8-channel-intquantized-bf16": "INT8 channel",
    "ct-int8-channel-sym-f32": "INT8 channel",
    "ct-int8-g128-sym-bf16": "INT8 g128",
    "ct-mxfp4-f32": "MXFP4 g32",
    "ct-mxfp8-f32": "MXFP8 g32",
    "ct-nvfp4-bf16": "NVFP4 g16",
    "ct-nvfp4-f32": "NVFP4 g16",
    "ct-nvfp4-fused-gate-up-f32": "NVFP4 g16",
    "fp8-block128-ragged": "FP8 block 128x128",
    "fp8-block32x64-transformers": "FP8 block 32x64",
    "gptq-p-int3-g32-asym": "INT3 g32 asymmetric",
    "gptq-p-int5-g32-sym": "INT5 g32",
    "gptq-v1-int3-g32-asym": "INT3 g32 asymmetric",
    "gptq-v1-int4-g32-asym": "INT4 g32 asymmetric",
    "gptq-v1-int4-g32-sym": "INT4 g32",
    "gptq-v2-int4-g32-asym": "INT4 g32 asymmetric",
    "gptq-v2-int4-g32-sym-descact": "INT4 g32",
    "gptq-v2-int4-g32-sym": "INT4 g32",
    "gptq-v2-int8-g32-sym": "INT8 g32",
    "mlx-affine-int3-g32": "INT3 g32 asymmetric",
    "mlx-affine-int4-g64": "INT4 g64 asymmetric",
    "mlx-affine-int6-g128": "INT6 g128 asymmetric",
    "mlx-affine-int8-g64": "INT8 g64 asymmetric",
    "modelopt-fp8-tensor": "FP8 tensor",
    "modelopt-mxfp4": "MXFP4 g32",
    "modelopt-mxfp8": "MXFP8 g32",
    "modelopt-nvfp4-bf16": "NVFP4 g16",
    "modelopt-nvfp4-experts3d": "NVFP4 g16",
    "modelopt-nvfp4-f32": "NVFP4 g16",
    "modelopt-w4a16-awq-uint8": "INT4 g32",
    "openai-mxfp4-experts3d": "MXFP4 g32",
    "quark-int4-g32-reorder": "INT4 g32",
    "quark-mxfp4": "MXFP4 g32",
    "quark-uint4-g32-order": "INT4 g32 asymmetric",
    "quark-uint4-g32-reorder": "INT4 g32 asymmetric",
}


def matrices(stem):
    """Parts and the library's values of every matrix in a file, with the config block that the file carries."""
    tensors = load_file(VECTORS / f"{stem}.safetensors")
    with safe_open(VECTORS / f"{stem}.safetensors", "pt") as file:
        block = CONFIGS.get(stem) or json.loads(file.metadata()["vector"])["config"] or {}
    groups = {}
    for key, tensor in tensors.items():
        if key.startswith("disk."):
            module, _, suffix = key.removeprefix("disk.").rpartition(".")
            groups.setdefault(module, {})[suffix] = tensor
    found = [(parts, tensors[f"dequant.{m}" if m else "dequant"], block) for m, parts in groups.items()]
    return [each for one in found for each in (experts(*one) if one[1].dim() == STACKED else [one])]


def experts(parts, values, block):
    """Each expert of a stack by itself. OpenAI's names are its own, and 16 bytes of codes stand apart."""
    named = {OPENAI.get(suffix.rpartition("_")[2], suffix): part for suffix, part in parts.items()}
    for number, matrix in enumerate(values):
        one = {s: part[1:] if s == "weight_shape" else part[number] for s, part in named.items()}
        yield {s: part.flatten(1) if part.dim() == STACKED else part for s, part in one.items()}, matrix, block


def specs(parts):
    return {suffix: Spec(NAMES[t.dtype], tuple(t.shape)) for suffix, t in parts.items()}


def test_every_vector_is_expected():
    assert sorted(EXPECTED) == FILES


@pytest.mark.parametrize("stem", FILES)
def test_decoding_gives_the_library_s_own_values(stem):
    for parts, values, block in matrices(stem):
        shape = tuple(values.shape)
        form, quantization = whole_weights.recognise(specs(parts), shape, block)
        assert formats.label(quantization) == EXPECTED[stem]
        decoded = form.decode(parts, shape, quantization)
        assert decoded.dtype == torch.float32
        rounded = decoded.to(COMPUTED_IN.get(stem.partition("-")[0], values.dtype))
        assert torch.equal(rounded.to(values.dtype), values)
        if stem not in SIGNED:
            assert torch.equal(torch.signbit(decoded), torch.signbit(values)), "the sign of a zero"


@pytest.mark.parametrize("stem", [stem for stem in FILES if stem.startswith("mlx")])
def test_mlx_s_own_rounding_is_within_the_bound(stem):
    weight = load_file(VECTORS / "source.safetensors")["base"].float()
    for parts, values, block in matrices(stem):
        form, quantization = whole_weights.recognise(specs(parts), (32, 128), block)
        limit, off = form.bound(parts, quantization, (32, 128)), (values.float() - weight).abs()
        assert not limit.beyond(weight, off).any()
        assert limit.beyond(weight, off * 4).any()


def test_a_column_of_a_group_that_is_not_there_is_nan_which_no_encoder_takes():
    (parts, values, block) = matrices("gptq-v2-int4-g32-sym-descact")[0]
    form, quantization = whole_weights.recognise(specs(parts), (32, 128), block)
    for odd in (4, -1):
        order = parts["g_idx"].clone()
        order[77] = odd
        decoded = form.decode(parts | {"g_idx": order}, (32, 128), quantization)
        assert decoded[:, 77].isnan().all()
        assert torch.equal(decoded[:, :77].half(), values[:, :77])


def test_a_band_of_rows_decodes_as_in_the_whole_matrix():
    weight = torch.randn(300, 160, generator=torch.Generator().manual_seed(3))
    for quantization in quantizations():
        form = formats.FORMATS[quantization.format]
        parts = whole_weights.encode([weight], quantization)[0]
        whole = form.decode(parts, (300, 160), quantization)
        lie = form.rows_in_parts((300, 160), quantization, form.layout((300, 160), quantization))
        for rows in ((0, 128), (128, 300), (256, 300)):
            cut = {
                suffix: tensor[slice(*lie[suffix].span(*rows))] if suffix in lie else tensor
                for suffix, tensor in parts.items()
            }
            band = form.decode(cut, (rows[1] - rows[0], 160), quantization)
            assert torch.equal(band, whole[slice(*rows)]), (quantization, rows)


def quantizations():
    """One of everything that is written."""
    return [
        Quantization("dense", dtype="BF16"),
        Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32"),
        *(
            Quantization("fp8_scaled", 8, strategy=s, block=(128, 128), scale_dtype="F32")
            for s in ("tensor", "channel", "block")
        ),
        formats.nvfp4.quantization(static=False),
        formats.modelopt_nvfp4.quantization(static=False),
        *whole_weights.MICROSCALED,
        *whole_weights.OTHER_SHAPES,
        *(
            Quantization("pack_quantized", b, "", "group", 32, symmetric=b % 2 == 0, scale_dtype="BF16")
            for b in range(2, 9)
        ),
        Quantization("pack_quantized", 3, strategy="channel", symmetric=False, scale_dtype="BF16"),
        Quantization("int_quantized", 8, strategy="channel", symmetric=False, scale_dtype="BF16"),
    ]


def test_modelopt_shapes_of_scales_decode_as_the_flat_ones():
    """ModelOpt writes [] for [1], [out] for [out, 1], [ceil, 1, ceil, 1] for [ceil, ceil]; a square shows a mix-up."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(4))
    for strategy, shape in (("tensor", ()), ("channel", (256,)), ("block", (2, 1, 2, 1))):
        q = Quantization(
            "fp8_scaled", 8, strategy=strategy, block=(128, 128) if strategy == "block" else None, scale_dtype="F32"
        )
        parts = whole_weights.encode([weight], q)[0]
        theirs = parts | {"weight_scale": parts["weight_scale"].reshape(shape)}
        form, found = whole_weights.recognise(specs(theirs), (256, 256), {})
        assert found == (q if strategy == "tensor" else replace(q, format="modelopt_fp8"))
        assert torch.equal(form.decode(theirs, (256, 256), found), whole_weights.decode(parts, (256, 256), q))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_integer_scales_of_every_dtype_are_read(dtype):
    parts, values, block = matrices("ct-int4-g32-asym-f32")[0]
    cast = parts | {"weight_scale": parts["weight_scale"].to(dtype)}
    form, quantization = whole_weights.recognise(specs(cast), (32, 128), block)
    scale = cast["weight_scale"].float()
    ratio = (scale / parts["weight_scale"]).repeat_interleave(32, 1)
    assert torch.allclose(form.decode(cast, (32, 128), quantization), values * ratio, rtol=1e-6)


@pytest.mark.parametrize("stem", ["ct-mxfp4-f32", "quark-mxfp4", "ct-mxfp8-f32"])
def test_exponents_may_be_called_what_they_are(stem):
    parts, values, _ = matrices(stem)[0]
    named = parts | {"weight_scale": parts["weight_scale"].view(torch.float8_e8m0fnu)}
    form, quantization = whole_weights.recognise(specs(named), (32, 128), {})
    assert quantization.scale_dtype == "U8", "what is written"
    assert torch.equal(form.decode(named, (32, 128), quantization).to(values.dtype), values)


@pytest.mark.parametrize("quantization", whole_weights.MICROSCALED, ids=lambda q: q.format)
def test_every_exponent_is_its_power_of_two(quantization):
    """OCP Microscaling 1.0, 5.4.1: byte 0 is 2^-127 and no zero, byte 255 is no number."""
    form = formats.FORMATS[quantization.format]
    layout = form.layout((256, 32), quantization)
    one = {"U8": 0x22, "F8_E4M3": 0x38}[form.codes.dtype]  # E2M1 twice, E4M3: exponent the bias, no mantissa
    codes = torch.full(layout[form.codes.suffix].shape, one, dtype=torch.uint8)
    parts = {
        form.codes.suffix: codes.view(getattr(torch, DTYPES[form.codes.dtype].torch)),
        "weight_scale": torch.arange(256).to(torch.uint8).reshape(256, 1),
    }
    values = form.decode(parts, (256, 32), quantization)
    assert [float(row[0]) for row in values[:255]] == [2.0**exponent for exponent in range(-127, 128)]
    assert not values[255].isfinite().any()


def test_act_order_reads_the_group_of_every_column():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(5))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(6))
    q = Quantization("pack_quantized", 4, "", "group", 32, symmetric=False, scale_dtype="BF16")
    parts = whole_weights.encode([weight[:, order]], q)[0]
    back = order.argsort()
    codes = parts["weight_packed"].view(torch.uint8)
    unpacked = torch.stack([codes & 15, codes >> 4], -1).flatten(1)[:, back]
    mixed = parts | {
        "weight_packed": (unpacked[:, 0::2] | (unpacked[:, 1::2] << 4)).view(torch.int32),
        "weight_g_idx": (back // 32).to(torch.int32),
    }
    form, found = whole_weights.recognise(specs(mixed), (16, 64), {})
    assert found == q
    assert torch.equal(form.decode(mixed, (16, 64), q), whole_weights.decode(parts, (16, 64), q)[:, back])


def test_smoothed_inputs_meet_a_smoothed_weight():
    """ModelOpt multiplies inputs by `pre_quant_scale`: x * s through W is x through W * s, column by column."""
    ((parts, values, _),) = matrices("modelopt-w4a16-awq-uint8")
    smoothing = torch.linspace(0.5, 2, 128)
    form, found = whole_weights.recognise(specs(parts | {"pre_quant_scale": smoothing}), (32, 128), {})
    inputs = torch.randn(4, 128, generator=torch.Generator().manual_seed(8))
    weight = form.decode(parts | {"pre_quant_scale": smoothing}, (32, 128), found)
    assert torch.allclose(inputs @ weight.T, (inputs * smoothing) @ values.T, rtol=1e-5, atol=1e-5)


def quark(*weights, pack_method="reorder"):
    layers = {f"*{i}": {"weight": {"dtype": dtype, "symmetric": even}} for i, (dtype, even) in enumerate(weights)}
    return {"quant_method": "quark", "export": {"pack_method": pack_method}, "layer_quant_config": layers}


INT4, UINT4 = ("int4", True), ("uint4", False)


@pytest.mark.parametrize(
    ("block", "is_symmetric"),
    [
        (quark(INT4, ("fp8_e4m3", True)), True),
        (quark(UINT4, UINT4), False),
        (quark(INT4, UINT4), None),  # which of them these codes are, nothing says
        (quark(("uint4", True)), None),
        (quark(("fp4", True)), None),
        (quark(INT4, pack_method="other"), None),
        (quark(INT4) | {"quant_method": "other"}, None),
        ({**quark(INT4), "export": None}, True),
        ({}, None),
    ],
)
def test_what_codes_of_quark_mean_the_config_has_to_say(block, is_symmetric):
    parts, values, _ = matrices("quark-int4-g32-reorder")[0]
    if is_symmetric is None:
        with pytest.raises(MtpforgeError, match="stored in no known way"):
            whole_weights.recognise(specs(parts), (32, 128), block)
        return
    form, found = whole_weights.recognise(specs(parts), (32, 128), block)
    assert found.symmetric is is_symmetric
    assert torch.equal(form.decode(parts, (32, 128), found), values.float()) is is_symmetric


def test_zero_points_that_are_none_may_be_left_out_of_quark_s_integers():
    for stem, is_read in (("quark-int4-g32-reorder", True), ("quark-uint4-g32-reorder", False)):
        parts, values, block = matrices(stem)[0]
        del parts["weight_zero_point"]
        found = [q for f in formats.FORMATS.values() if (q := f.recognise(specs(parts), (32, 128), block))]
        assert len(found) == is_read
        if is_read:
            assert torch.equal(whole_weights.decode(parts, (32, 128), found[0]), values.float())


def test_the_second_scale_of_w4a8_awq_changes_no_weight():
    """ModelOpt divides by the first one alone: get_weight_scaling_factor takes the first of both quantizers."""
    ((parts, values, _),) = matrices("modelopt-w4a16-awq-uint8")
    second = {"weight_scale_2": torch.tensor(0.25), "input_scale": torch.tensor(1.5)}
    form, found = whole_weights.recognise(specs(parts | second), (32, 128), {})
    assert torch.equal(form.decode(parts | second, (32, 128), found), values.float())


def test_modelopt_s_int8_has_a_scale_a_row_where_the_config_says_so():
    codes = torch.randint(-128, 128, (64, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(9))
    parts = {"weight": codes, "weight_scale": torch.rand(64) + 0.5, "input_scale": torch.tensor(1.0)}
    form, found = whole_weights.recognise(specs(parts), (64, 64), {"quant_method": "modelopt"})
    assert form.name == "modelopt_int8"
    assert torch.equal(form.decode(parts, (64, 64), found), codes.float() * parts["weight_scale"][:, None])
    with pytest.raises(MtpforgeError, match="no known way"):
        whole_weights.recognise(specs(parts), (64, 64), {})
