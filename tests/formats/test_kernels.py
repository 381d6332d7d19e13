"""Compiled row kernels write what the formats' own libraries write, and read what they read."""

from types import SimpleNamespace

import pytest
import torch
import whole_weights
from test_encoding import BF16, WEIGHTS, same
from test_vectors import COMPUTED_IN, FILES, matrices, specs

from mtpforge.building import encoding
from mtpforge.checkpoint.hub import cache
from mtpforge.formats import FORMATS
from mtpforge.tensors import Quantization
from mtpforge.weights import Band
from mtpforge.weights.kernels import RowKernels

DENSE = Quantization("dense", 32, dtype="F32")

COMPILED = {
    *(
        stem
        for stem in FILES
        if stem.startswith(("autoround", "awq", "gptq", "quark-int4", "quark-uint4")) and "descact" not in stem
    ),
    "ct-int4-g32-asym-f32-experts3d",
    "ct-mxfp8-f32",
    "modelopt-mxfp8",
    "modelopt-nvfp4-experts3d",
    "openai-mxfp4-experts3d",
    "ct-int4-g32-asym-bf16",
    "ct-int4-g32-asym-f32",
    "ct-int4-g32-asym-f32-scalebf16",
    "ct-int4-g32-sym-bf16",
    "ct-int4-g32-sym-f32",
    "ct-int8-channel-asym-f32",
    "ct-int8-channel-sym-f32",
    "ct-int8-g128-sym-bf16",
    "ct-mxfp4-f32",
    "ct-nvfp4-bf16",
    "ct-nvfp4-f32",
    "ct-nvfp4-fused-gate-up-f32",
    "modelopt-mxfp4",
    "modelopt-nvfp4-bf16",
    "modelopt-nvfp4-f32",
    "quark-mxfp4",
}


@pytest.fixture(scope="module")
def kernels():
    return RowKernels(cache.home() / "kernels")


def band_of(parts, shape, stored):
    return Band(0, shape, stored, parts, {})


def encode(kernels, weight, wanted, matrix):
    move = SimpleNamespace(shape=tuple(weight.shape), wanted=wanted, scales="rtn")
    made = encoding.compiled(kernels, move, band_of({"weight": weight}, tuple(weight.shape), DENSE), matrix)
    return (
        None
        if made is None
        else {**matrix, **{suffix: t.clone(memory_format=torch.contiguous_format) for suffix, t in made.items()}}
    )


def decode(kernels, parts, shape, stored):
    decoded = kernels.decode(band_of(parts, shape, stored))
    return None if decoded is None else decoded.clone()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("strategy", "size"), [("group", 32), ("group", 64), ("channel", None)])
def test_packed_integers_equal_the_library(compressed_tensors, kernels, weights, strategy, size, bits, symmetric, name):
    weight = weights[name]
    wanted = Quantization("pack_quantized", bits, "", strategy, size, symmetric=symmetric, scale_dtype="BF16")
    matrix = FORMATS["pack_quantized"].matrix_parts(tuple(weight.shape), wanted, None)
    theirs = compressed_tensors.encode(
        weight,
        "pack-quantized",
        num_bits=bits,
        type="int",
        symmetric=symmetric,
        strategy=strategy,
        group_size=size,
        scale_dtype=BF16,
    )
    same(encode(kernels, weight, wanted, matrix), theirs)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", WEIGHTS)
def test_nvfp4_equals_compressed_tensors(compressed_tensors, kernels, weights, name):
    weight = weights[name]
    wanted = Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3", input_scale="none")
    matrix = FORMATS["nvfp4"].matrix_parts(tuple(weight.shape), wanted, weight.abs().amax())
    made = encode(kernels, weight, wanted, matrix)
    assert (made is None) == (name == "huge")  # factors may be subnormal there: left to the plain path
    if made is None:
        return
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
    same(made, theirs)


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name not in {"zero", "subnormal", "least"}])
def test_nvfp4_equals_modelopt(modelopt, kernels, weights, name):
    weight = weights[name]
    wanted = Quantization("modelopt_nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3")
    matrix = FORMATS["modelopt_nvfp4"].matrix_parts(tuple(weight.shape), wanted, weight.abs().amax())
    made = encode(kernels, weight, wanted, matrix)
    assert (made is None) == (name == "huge")  # factors may be subnormal there: left to the plain path
    if made is None:
        return
    quantized, scale, scale_2 = modelopt.NVFP4QTensor.quantize(weight.clone(), 16)
    theirs = {"weight": quantized._quantized_data, "weight_scale": scale, "weight_scale_2": scale_2}
    same(made, theirs)


@pytest.mark.parametrize("name", WEIGHTS)
def test_bf16_is_torch_s_own_cast(kernels, weights, name):
    wanted = Quantization("dense", 16, dtype="BF16")
    same(encode(kernels, weights[name], wanted, {}), {"weight": weights[name].to(torch.bfloat16)})


def test_what_bf16_cannot_hold_is_left_to_the_plain_path(kernels):
    weight = torch.full((2, 128), 3.4e38)
    assert encode(kernels, weight, Quantization("dense", 16, dtype="BF16"), {}) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_none_are_left_to_the_plain_path(kernels, bad, dtype):
    weight = torch.ones(3, 64, dtype=dtype)
    stored = Quantization("dense", 32, dtype="F32" if dtype == torch.float32 else "BF16")
    assert decode(kernels, {"weight": weight}, (3, 64), stored) is not None
    weight[2, 63] = bad
    assert decode(kernels, {"weight": weight}, (3, 64), stored) is None


def test_nan_code_of_fp8_is_left_to_the_plain_path(kernels):
    stored = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32")
    codes = torch.arange(256, dtype=torch.uint8).reshape(2, 128)
    good = torch.where((codes & 0x7F) == 0x7F, 0x80, codes)
    parts = {"weight": good.view(torch.float8_e4m3fn), "weight_scale_inv": torch.tensor([[-0.3]])}
    values = decode(kernels, parts, (2, 128), stored)
    assert torch.equal(values.view(torch.int32), (parts["weight"].float() * torch.tensor(-0.3)).view(torch.int32))
    assert decode(kernels, {**parts, "weight": codes.view(torch.float8_e4m3fn)}, (2, 128), stored) is None


@pytest.mark.parametrize("stem", FILES)
def test_decoding_gives_the_library_s_own_values(kernels, stem):
    for parts, values, block in matrices(stem):
        shape = tuple(values.shape)
        _, quantization = whole_weights.recognise(specs(parts), shape, block)
        decoded = decode(kernels, parts, shape, quantization)
        assert (decoded is not None) == (stem in COMPILED)
        computed = COMPUTED_IN.get(stem.partition("-")[0], values.dtype)
        assert decoded is None or torch.equal(decoded.to(computed).to(values.dtype), values)


def test_largest_magnitude_is_exact(kernels, weights):
    for weight in weights.values():
        assert kernels.largest(band_of({"weight": weight}, tuple(weight.shape), DENSE)) == weight.abs().amax()


def test_rows_are_independent_of_the_band_that_holds_them(kernels, weights):
    wanted = Quantization("pack_quantized", 4, "", "group", 32, symmetric=False, scale_dtype="BF16")
    whole = encode(kernels, weights["random"], wanted, {})
    part = encode(kernels, weights["random"][128:].contiguous(), wanted, {})
    assert torch.equal(whole["weight_packed"][128:], part["weight_packed"])
    assert torch.equal(whole["weight_zero_point"][16:], part["weight_zero_point"])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("quantization", whole_weights.MICROSCALED, ids=lambda q: q.format)
def test_microscaled_formats_equal_the_plain_path(kernels, weights, quantization):
    """Which the libraries' own bytes are held against in test_encoding."""
    tiny = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 3e-39, 1.0, -448.0, 3e38]).repeat(2, 16)
    for weight in (*weights.values(), *(torch.randn(8, 160) * 2.0**e for e in (-130, -20, 0, 100)), tiny):
        if weight.shape[1] % 32 == 0:
            same(encode(kernels, weight, quantization, {}), whole_weights.encode([weight], quantization)[0])


@pytest.mark.parametrize("quantization", whole_weights.MICROSCALED, ids=lambda q: q.format)
def test_exponents_that_are_no_number_are_left_to_the_plain_path(kernels, quantization):
    parts = whole_weights.encode([torch.randn(4, 64)], quantization)[0]
    parts["weight_scale"][2, 1] = 255
    assert kernels.decode(band_of(parts, (4, 64), quantization)) is None
