"""Encoders write the bytes that the formats' own libraries write, fed the same float32 weights."""

from pathlib import Path

import pytest
import torch
import whole_weights
from safetensors.torch import load_file
from slow_twins import packers

from mtpforge import formats
from mtpforge.arithmetic import searching
from mtpforge.tensors import Quantization

VECTORS = Path(__file__).parents[1] / "data" / "vectors"

WEIGHTS = (
    "base",
    "random",
    "zero groups",
    "tiny groups",
    "one tiny block",
    "zero",
    "subnormal",
    "least",
    "huge",
    "one row",
    "heavy tails",
    "positive",
    "negative",
    "ties",
)
BF16 = torch.bfloat16


def same(ours, theirs):
    """The same parts, byte for byte; a scale that the library leaves in F32 is compared by the dtype that we store."""
    assert ours.keys() == theirs.keys()
    for suffix, tensor in ours.items():
        other = theirs[suffix].to(tensor.dtype)
        assert torch.equal(other.double(), theirs[suffix].double()), f"{suffix} does not fit {tensor.dtype}"
        assert tensor.shape == other.shape, suffix
        assert tensor.is_contiguous()
        assert torch.equal(raw(tensor), raw(other.clone(memory_format=torch.contiguous_format))), suffix


def raw(tensor):
    assert tensor.stride() == torch.empty(tensor.shape).stride()  # else a writer cannot view it as bytes
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_integers_equal_the_library(compressed_tensors, weights, bits, symmetric, name):
    for strategy, size in (("group", 32), ("channel", None)):
        q = Quantization("pack_quantized", bits, "", strategy, size, symmetric=symmetric, scale_dtype="BF16")
        theirs = compressed_tensors.encode(
            weights[name],
            "pack-quantized",
            num_bits=bits,
            type="int",
            symmetric=symmetric,
            strategy=strategy,
            group_size=size,
            scale_dtype=BF16,
        )
        same(whole_weights.encode([weights[name]], q)[0], theirs)


@pytest.mark.parametrize("source", ["cols100", "ragged"])
@pytest.mark.parametrize("bits", [3, 4, 7, 8])
def test_a_tail_of_columns_is_packed_as_the_library_packs_it(compressed_tensors, sources, bits, source):
    q = Quantization("pack_quantized", bits, strategy="channel", symmetric=False, scale_dtype="BF16")
    theirs = compressed_tensors.encode(
        sources[source],
        "pack-quantized",
        num_bits=bits,
        type="int",
        symmetric=False,
        strategy="channel",
        scale_dtype=BF16,
    )
    same(whole_weights.encode([sources[source]], q)[0], theirs)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_of_eight_bits_equal_the_library(compressed_tensors, weights, symmetric, name):
    q = Quantization("int_quantized", 8, strategy="channel", symmetric=symmetric, scale_dtype="BF16")
    theirs = compressed_tensors.encode(
        weights[name],
        "int-quantized",
        num_bits=8,
        type="int",
        symmetric=symmetric,
        strategy="channel",
        scale_dtype=BF16,
    )
    same(whole_weights.encode([weights[name]], q)[0], theirs)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_scaled_fp8_equals_the_library(compressed_tensors, weights, dtype, strategy, name):
    block = (128, 128) if strategy == "block" else None
    q = Quantization("fp8_scaled", 8, strategy=strategy, block=block, scale_dtype=dtype)
    theirs = compressed_tensors.encode(
        weights[name],
        "float-quantized",
        num_bits=8,
        type="float",
        strategy=strategy,
        block_structure=block and list(block),
        scale_dtype=BF16 if dtype == "BF16" else None,
    )
    same(whole_weights.encode([weights[name]], q)[0], theirs)


def test_ragged_blocks_equal_the_library(compressed_tensors, sources):
    wide = torch.randn(300, 260, generator=torch.Generator().manual_seed(2))
    q = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32")
    for weight in (sources["ragged"], wide):
        theirs = compressed_tensors.encode(
            weight, "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[128, 128]
        )
        theirs["weight_scale_inv"] = theirs.pop("weight_scale")
        same(whole_weights.encode([weight], q)[0], theirs)


@pytest.mark.parametrize("name", WEIGHTS)
def test_nvfp4_equals_compressed_tensors(compressed_tensors, weights, name):
    weight = weights[name]
    theirs = compressed_tensors.encode(
        weight,
        "nvfp4-pack-quantized",
        global_scale=compressed_tensors.global_scale(weight),
        num_bits=4,
        type="float",
        strategy="tensor_group",
        group_size=16,
        scale_dtype=torch.float8_e4m3fn,
    )
    q = formats.nvfp4.quantization(static=False)
    same(whole_weights.encode([weight], q)[0], theirs)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("bits", "stored_as"), [(4, "mxfp4-pack-quantized"), (8, "mxfp8-quantized")])
def test_microscaled_weights_equal_compressed_tensors(compressed_tensors, weights, stored_as, bits, name):
    theirs = compressed_tensors.encode(
        weights[name],
        stored_as,
        num_bits=bits,
        type="float",
        strategy="group",
        group_size=32,
        scale_dtype=torch.uint8,
    )
    q = Quantization(f"mxfp{bits}", bits, strategy="group", group_size=32, scale_dtype="U8")
    same(
        whole_weights.encode([weights[name]], q)[0],
        {k: v for k, v in theirs.items() if k in {"weight_packed", "weight", "weight_scale"}},
    )


def test_gate_and_up_share_the_global_scale_of_both(compressed_tensors, sources):
    pair = [sources["gate"], sources["up"]]
    shared = compressed_tensors.global_scale(*pair)
    ours = whole_weights.encode(pair, formats.nvfp4.quantization(static=False))
    assert not torch.equal(shared, compressed_tensors.global_scale(pair[1]))
    for weight, parts in zip(pair, ours, strict=True):
        theirs = compressed_tensors.encode(
            weight,
            "nvfp4-pack-quantized",
            global_scale=shared,
            num_bits=4,
            type="float",
            strategy="tensor_group",
            group_size=16,
            scale_dtype=torch.float8_e4m3fn,
        )
        same(parts, theirs)


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name not in {"zero", "subnormal", "least"}])
def test_nvfp4_equals_modelopt(modelopt, weights, name):
    quantized, scale, scale_2 = modelopt.NVFP4QTensor.quantize(weights[name].clone(), 16)
    theirs = {"weight": quantized._quantized_data, "weight_scale": scale, "weight_scale_2": scale_2}
    same(whole_weights.encode([weights[name]], formats.modelopt_nvfp4.quantization(static=False))[0], theirs)


@pytest.mark.parametrize("name", ["zero", "subnormal", "least"])
def test_weights_that_modelopt_turns_into_nan_decode_to_zero(modelopt, weights, name):
    q = formats.modelopt_nvfp4.quantization(static=False)
    parts = whole_weights.encode([weights[name]], q)[0]
    assert parts["weight_scale_2"] > 0
    decoded = whole_weights.decode(parts, tuple(weights[name].shape), q)
    theirs = modelopt.NVFP4QTensor(weights[name].shape, BF16, parts["weight"]).dequantize(
        scale=parts["weight_scale"], double_scale=parts["weight_scale_2"], block_sizes={-1: 16}
    )
    assert torch.equal(decoded.to(BF16), theirs)
    assert decoded.isfinite().all()
    assert (decoded - weights[name]).abs().max() <= 1e-38


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_dense_numbers_are_rounded_to_nearest(sources, dtype):
    expected = sources["base"].to({"BF16": BF16, "F16": torch.float16, "F32": torch.float32}[dtype])
    same(whole_weights.encode([sources["base"]], Quantization("dense", dtype=dtype))[0], {"weight": expected})


def test_the_stored_vector_of_the_way_to_write_is_what_we_write(sources):
    """ct-int4-g32-asym-f32-scalebf16: written by compressed-tensors 0.20.0, whatever version is installed here."""
    theirs = load_file(VECTORS / "ct-int4-g32-asym-f32-scalebf16.safetensors")
    disk = {key.removeprefix("disk."): tensor for key, tensor in theirs.items() if key.startswith("disk.")}
    q = Quantization("pack_quantized", 4, "", "group", 32, symmetric=False, scale_dtype="BF16")
    same(whole_weights.encode([sources["base"]], q)[0], disk)


@pytest.mark.parametrize(
    "stem",
    [
        "ct-nvfp4-f32",
        "modelopt-nvfp4-f32",
        "ct-fp8-channel-f32",
        "ct-fp8-tensor-f32",
        "ct-mxfp4-f32",
        "quark-mxfp4",
        "ct-mxfp8-f32",
    ],
)
def test_the_stored_vectors_of_float_formats_are_what_we_write(sources, stem):
    theirs = load_file(VECTORS / f"{stem}.safetensors")
    disk = {key.removeprefix("disk."): tensor for key, tensor in theirs.items() if key.startswith("disk.")}
    q = {
        "ct-nvfp4-f32": formats.nvfp4.quantization(static=False),
        "modelopt-nvfp4-f32": formats.modelopt_nvfp4.quantization(static=False),
        "ct-fp8-channel-f32": Quantization("fp8_scaled", 8, strategy="channel", scale_dtype="F32"),
        "ct-fp8-tensor-f32": Quantization("fp8_scaled", 8, strategy="tensor", scale_dtype="F32"),
        **dict(zip(("ct-mxfp4-f32", "quark-mxfp4", "ct-mxfp8-f32"), whole_weights.MICROSCALED, strict=True)),
    }[stem]
    same(whole_weights.encode([sources["base"]], q)[0], disk)


@pytest.mark.parametrize(
    ("stem", "bits", "kind", "symmetric"),
    [
        ("awq-gemm-int4-g32", 4, "awq", False),
        ("gptq-v1-int4-g32-sym", 4, "gptq", True),
        ("gptq-v1-int4-g32-asym", 4, "gptq", False),
        ("gptq-v1-int3-g32-asym", 3, "gptq", False),
        ("gptq-v2-int4-g32-sym", 4, "gptq_v2", True),
        ("gptq-v2-int4-g32-asym", 4, "gptq_v2", False),
        ("gptq-v2-int8-g32-sym", 8, "gptq_v2", True),
        ("autoround-gptq-int4-g32-sym", 4, "gptq", True),
    ],
)
def test_codes_laid_out_by_inputs_are_packed_as_their_libraries_pack_them(stem, bits, kind, symmetric):
    """The bytes of autoawq, gptqmodel and auto-round, from the codes, scales and zero points that these hold."""
    theirs = load_file(VECTORS / f"{stem}.safetensors")
    disk = {key.removeprefix("disk."): tensor for key, tensor in theirs.items() if key.startswith("disk.")}
    disk.pop("g_idx", None)
    codes, zeros = packers.unpacked(disk, bits, kind)
    assert zeros.unique().tolist() == [2 ** (bits - 1)] or not symmetric
    scale = disk["scales"].t().float()

    def find(weight, *_):
        return codes.to(torch.uint8).view(weight.shape), scale, None if symmetric else zeros.to(torch.uint8)

    q = Quantization(kind, bits, "", "group", 32, symmetric=symmetric, scale_dtype="F16")
    same(formats.FORMATS[kind].search(torch.empty(codes.shape), q, {}, find), disk)


@pytest.mark.parametrize(
    ("stem", "kind", "symmetric"),
    [
        ("quark-uint4-g32-reorder", "quark_int4", False),
        ("quark-uint4-g32-order", "quark_int4_in_order", False),
        ("quark-int4-g32-reorder", "quark_int4", True),
    ],
)
def test_codes_are_packed_as_quark_packs_them(stem, kind, symmetric):
    """The bytes of amd-quark, from the codes, scales and zero points that these hold; int4 in two's complement."""
    theirs = load_file(VECTORS / f"{stem}.safetensors")
    disk = {key.removeprefix("disk."): tensor for key, tensor in theirs.items() if key.startswith("disk.")}
    codes, zeros = packers.quark_codes(disk, in_order=kind.endswith("order"))
    scale = disk["weight_scale"].t().float()

    def find(weight, *_):
        unsigned = codes ^ 8 if symmetric else codes
        return unsigned.to(torch.uint8).view(weight.shape), scale, None if symmetric else zeros.to(torch.uint8)

    dtype = {torch.bfloat16: "BF16", torch.float32: "F32"}[disk["weight_scale"].dtype]
    q = Quantization(kind, 4, "", "group", 32, symmetric=symmetric, scale_dtype=dtype)
    same(formats.FORMATS[kind].search(torch.empty(codes.shape), q, {}, find), disk)


@pytest.mark.parametrize("kind", ["quark_int4", "quark_int4_in_order"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quarks_integers_are_compressed_tensors_own(compressed_tensors, weights, kind, symmetric):
    """The same codes, zero points and BF16 scales, in another order."""
    arguments = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32}
    theirs = compressed_tensors.encode(weights["random"], "pack-quantized", scale_dtype=torch.bfloat16, **arguments)
    q = Quantization(kind, 4, "", "group", 32, symmetric=symmetric, scale_dtype="BF16")
    ours = whole_weights.encode([weights["random"]], q)[0]
    codes, zeros = packers.quark_codes(ours, in_order=kind.endswith("order"))
    if symmetric:
        codes = codes - 16 * (codes > 7)
        assert not zeros.any()
    step = ours["weight_scale"].t().float()
    values = (codes.unflatten(1, (-1, 32)) - zeros.unsqueeze(-1)) * step.unsqueeze(-1)
    assert torch.equal(step, theirs["weight_scale"].float())
    assert torch.equal(values.flatten(1), compressed_tensors.decode(theirs, "pack-quantized", **arguments).float())


@pytest.mark.parametrize("name", [n for n in WEIGHTS if n not in {"huge", "least", "one row", "zero"}])
@pytest.mark.parametrize(("kind", "bits", "symmetric"), [("awq", 4, False), ("gptq", 4, True), ("gptq_v2", 8, True)])
def test_numbers_laid_out_by_inputs_are_compressed_tensors_own(
    compressed_tensors, weights, kind, bits, symmetric, name
):
    """The same codes, zero points and F16 scales, in another order; of what F16 and whole words can hold."""
    arguments = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32}
    theirs = compressed_tensors.encode(weights[name], "pack-quantized", scale_dtype=torch.float16, **arguments)
    q = Quantization(kind, bits, "", "group", 32, symmetric=symmetric, scale_dtype="F16")
    ours = whole_weights.encode([weights[name]], q)[0]
    codes, zeros = packers.unpacked(ours, bits, kind)
    assert torch.equal(ours["scales"].t().float(), theirs["weight_scale"].float())
    steps = (codes.unflatten(1, (-1, 32)) - zeros.unsqueeze(-1)).float() * theirs["weight_scale"].float().unsqueeze(-1)
    assert torch.equal(steps.flatten(1), compressed_tensors.decode(theirs, "pack-quantized", **arguments).float())
    assert torch.equal(whole_weights.decode(ours, tuple(weights[name].shape), q), steps.flatten(1))


@pytest.mark.parametrize("kind", ["gptq", "gptq_v2"])
def test_a_zero_point_that_engines_take_for_granted_must_be_the_middle(weights, kind):
    """Codes and zero point one higher are the same values to a reader of both, others to vLLM."""
    q = Quantization(kind, 8, "", "group", 32, scale_dtype="F16")
    weight, form = weights["random"], formats.FORMATS[kind]
    assert not form.bound(form.encode(weight, q, {}), q, (144, 128)).absolute.isnan().any()

    def find(rows, bits, dtype, symmetric):
        codes, scale, _ = searching.nearest(searching.whole_range)(rows, bits, dtype, symmetric)
        middle = torch.full_like(scale, 128, dtype=torch.uint8)
        middle[5, 2] += 1
        codes[5, 2] = codes[5, 2].clamp(max=254) + 1
        return codes, scale, middle

    odd = form.search(weight, q, {}, find)
    off = (form.decode(odd, (144, 128), q) - weight).abs()
    beyond = form.bound(odd, q, (144, 128)).beyond(weight, off)
    assert beyond.nonzero().unique(dim=0).tolist() == [[5, column] for column in range(64, 96)]


def test_modelopt_fp8_differs_in_the_sign_of_zero_alone(modelopt, sources):
    q = Quantization("fp8_scaled", 8, strategy="tensor", scale_dtype="F32")
    ours = whole_weights.encode([sources["base"]], q)[0]
    theirs, scale = modelopt.FP8QTensor.quantize(sources["base"].clone())
    assert torch.equal(scale.reshape(1), ours["weight_scale"])
    assert torch.equal(theirs._quantized_data.float(), ours["weight"].float())
    differ = theirs._quantized_data.view(torch.uint8) != ours["weight"].view(torch.uint8)
    assert differ.any()
    assert (sources["base"][differ] == 0).all()
