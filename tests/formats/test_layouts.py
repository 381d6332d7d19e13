"""layout() says what encode() makes, and what a round trip may lose."""

from dataclasses import replace

import pytest
import torch
import whole_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpforge import formats
from mtpforge.errors import MtpforgeError
from mtpforge.tensors import DTYPES, Quantization, Spec

NAMES = {getattr(torch, d.torch): d.name for d in DTYPES.values() if hasattr(torch, d.torch)}
U = 2.0**-8  # half a step of BF16

integers = st.builds(
    lambda bits, symmetric, size: Quantization(
        "pack_quantized", bits, "", "group" if size else "channel", size, symmetric=symmetric, scale_dtype="BF16"
    ),
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from([None, 16, 32, 48]),
)
whole_bytes = st.builds(
    lambda symmetric: Quantization("int_quantized", 8, strategy="channel", symmetric=symmetric, scale_dtype="BF16"),
    st.booleans(),
)
floats = st.sampled_from(
    [
        Quantization("dense", 16, "BF16"),
        Quantization("dense", 32, "F32"),
        Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32"),
        *(
            Quantization("fp8_scaled", 8, strategy=s, block=(128, 128) if s == "block" else None, scale_dtype=d)
            for s in ("tensor", "channel", "block")
            for d in ("F32", "BF16")
        ),
        formats.nvfp4.quantization(static=False),
        formats.modelopt_nvfp4.quantization(static=False),
        *whole_weights.MICROSCALED,
        *whole_weights.OTHER_SHAPES,
    ]
)
by_inputs = st.one_of(
    st.builds(
        lambda size, dtype: Quantization("awq", 4, "", "group", size, symmetric=False, scale_dtype=dtype),
        st.sampled_from([16, 32, 48]),
        st.sampled_from(["F16", "BF16"]),
    ),
    st.builds(
        lambda name, bits, symmetric, size: Quantization(
            name, bits, "", "group" if size else "channel", size, symmetric=symmetric, scale_dtype="F16"
        ),
        st.sampled_from(["gptq", "gptq_v2"]),
        st.sampled_from([2, 3, 4, 8]),
        st.booleans(),
        st.sampled_from([None, 16, 32, 48]),
    ),
)
quantizations = st.one_of(integers, whole_bytes, floats, by_inputs)
columns = st.integers(1, 6).map(lambda n: 96 * n)


def matrix(rows, columns, seed, exponent):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=g) * 2.0**exponent
    weight[torch.rand(rows, columns, generator=g) < 0.1] = 0
    return weight


def shrunk(quantization, columns):
    """The quantization, with a group size that divides the columns."""

    if quantization.group_size and columns % quantization.group_size:
        return replace(quantization, group_size=16)
    return quantization


def filled(quantization, rows):
    """So many rows, or some more, where the format has no words that are partly filled."""
    whole = formats.whole(quantization)[0] if quantization.format in {"awq", "gptq", "gptq_v2"} else 1
    return -(-rows // whole) * whole


def block(quantization):
    """What a config says of it: the bits, GPTQ's way to store zero points, whose INT8 it is."""
    if quantization.format == "quark_int8":
        return {"quant_method": "quark"}
    v2 = {"checkpoint_format": "gptq_v2"} if quantization.format == "gptq_v2" else {}
    method = {"quant_method": "gptq", "sym": quantization.symmetric} if "gptq" in quantization.format else {}
    return {"config_groups": {"g": {"weights": {"num_bits": quantization.bits}}}} | method | v2


@settings(max_examples=40, deadline=None)
@given(quantizations, st.integers(1, 300), columns)
def test_encoders_make_what_layout_says(quantization, rows, columns):
    q = shrunk(quantization, columns)
    rows = filled(q, rows)
    parts = whole_weights.encode([matrix(rows, columns, rows, 0)], q)[0]
    expected = formats.FORMATS[q.format].layout((rows, columns), q)
    assert {s: Spec(NAMES[t.dtype], tuple(t.shape)) for s, t in parts.items()} == expected
    assert whole_weights.recognise(expected, (rows, columns), block(q))


@settings(max_examples=40, deadline=None)
@given(quantizations, st.integers(129, 300), columns, st.integers(0, 99))
def test_encoding_band_by_band_changes_no_byte(quantization, rows, columns, seed):
    q = shrunk(quantization, columns)
    rows = filled(q, rows)
    weight = matrix(rows, columns, seed, -5)
    form = formats.FORMATS[q.format]
    matrix_parts = form.matrix_parts(weight.shape, q, weight.abs().amax() if form.needs_amax(q) else None)
    whole = form.encode(weight, q, matrix_parts)
    banded = whole_weights.encode([weight], q)[0]
    assert whole.keys() == form.rows_in_parts((rows, columns), q, form.layout((rows, columns), q)).keys()
    for suffix, part in whole.items():
        assert torch.equal(part.view(torch.uint8), banded[suffix].view(torch.uint8)), suffix


def bound(weight, parts, q):
    """Largest error that each element of an integer or float code may have, by the rounding of code and scale."""
    if q.format in {"pack_quantized", "int_quantized", "quark_int8"} or "qweight" in parts:
        scale = parts["weight_scale"].float() if "weight_scale" in parts else parts["scales"].t().float()
        scale = scale.view(len(weight), -1)
        half_step = (scale * 2.0**-11).clamp(min=2.0**-25) if q.scale_dtype == "F16" else scale * U
        most = scale * (0.5 + 1e-4) + half_step * (2**q.bits - 1) * (0.5 if q.symmetric else 1)
        return most.repeat_interleave(weight.shape[1] // scale.shape[1], 1)
    if q.format == "nvfp4":
        return (parts["weight_scale"].float() / parts["weight_global_scale"]).repeat_interleave(16, 1)
    if q.format == "modelopt_nvfp4":
        return (parts["weight_scale"].float() * parts["weight_scale_2"]).repeat_interleave(16, 1)
    if "mxfp" in q.format:
        steps = (2.0 ** (parts["weight_scale"].double() - 127)).repeat_interleave(32, 1)
        return steps if q.bits == 4 else torch.maximum(weight.abs() / 16, steps * 2.0**-10)
    scale = parts.get("weight_scale", parts.get("weight_scale_inv"))
    if scale is None:
        return weight.abs() * U
    least = 2.0**-10 * scale.float().max()
    # a scale rounded down to BF16 moves the largest numbers beyond code 448, which cuts them by half a step of BF16
    return torch.maximum(weight.abs() / 16, least.expand_as(weight)) * (1 + 2 * U)


@settings(max_examples=60, deadline=None)
@given(quantizations, st.integers(1, 140), columns, st.integers(0, 99), st.integers(-20, 20))
def test_a_round_trip_stays_within_the_bound_of_its_format(quantization, rows, columns, seed, exponent):
    q = shrunk(quantization, columns)
    rows = filled(q, rows)
    # Scales end at 65,504 there, and two bits take two thirds of the largest weight.
    weight = matrix(rows, columns, seed, min(exponent, 12) if q.scale_dtype == "F16" else exponent)
    parts = whole_weights.encode([weight], q)[0]
    error = (whole_weights.decode(parts, (rows, columns), q) - weight).abs()
    assert (error <= bound(weight, parts, q)).all()


@pytest.mark.parametrize(
    ("quantization", "suffix", "shape"),
    [
        (Quantization("fp8_scaled", 8, strategy="tensor", input_scale="static"), "input_scale", (1,)),
        (formats.nvfp4.quantization(static=True), "input_global_scale", (1,)),
        (formats.modelopt_nvfp4.quantization(static=True), "input_scale", ()),
    ],
)
def test_static_activations_add_one_number(quantization, suffix, shape):
    form = formats.FORMATS[quantization.format]
    assert form.input_scale.suffix == suffix
    assert form.layout((32, 64), quantization)[suffix] == Spec("F32", shape)


def test_input_scales_mean_what_the_libraries_mean():
    conventions = {
        n: (f.input_scale.divisor, f.input_scale.reciprocal) for n, f in formats.FORMATS.items() if f.input_scale
    }
    fp8 = dict.fromkeys(("fp8_scaled", "modelopt_fp8", "w4afp8"), (448, False))
    assert conventions == {**fp8, "nvfp4": (2688, True), "modelopt_nvfp4": (2688, False)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused(value):
    weight = torch.randn(4, 32)
    weight[2, 3] = value
    with pytest.raises(MtpforgeError) as caught:
        whole_weights.encode([weight], formats.nvfp4.quantization(static=False))
    assert str(caught.value) == (
        "error: a weight is NaN or Inf\n"
        "cause: no quantized format can hold it: a whole group, row or matrix would be lost\n"
        " hint: use another source: `--source ORG/NAME`"
    )


def test_a_number_too_large_for_f16_is_refused():
    with pytest.raises(MtpforgeError, match="a weight does not fit into F16"):
        whole_weights.encode([torch.full((2, 2), 1e6)], Quantization("dense", 16, "F16"))


def test_groups_that_do_not_divide_the_columns_are_refused():
    with pytest.raises(MtpforgeError, match="groups of 32 columns do not divide 100"):
        formats.FORMATS["pack_quantized"].layout((8, 100), Quantization("pack_quantized", 4, "", "group", 32))


def test_nvfp4_refuses_a_ragged_row():
    with pytest.raises(MtpforgeError, match="NVFP4 needs a multiple of 16 columns, the weight has 24"):
        formats.FORMATS["nvfp4"].layout((8, 24), formats.nvfp4.quantization(static=False))


@pytest.mark.parametrize("quantization", whole_weights.MICROSCALED, ids=lambda q: q.format)
def test_microscaled_formats_refuse_a_ragged_row(quantization):
    with pytest.raises(
        MtpforgeError, match=f"MXFP{quantization.bits} needs a multiple of 32 columns, the weight has 48"
    ):
        formats.FORMATS[quantization.format].layout((8, 48), quantization)


@pytest.mark.parametrize(
    ("quantization", "rows", "columns"),
    [
        (Quantization("dense", 16, "BF16"), 1, 1),
        (Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32"), 128, 1),
        (Quantization("fp8_scaled", 8, strategy="channel", scale_dtype="F32"), 1, 1),
        (Quantization("int_quantized", 8, strategy="channel", scale_dtype="BF16"), 1, 1),
        (Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3"), 1, 2),
        *((q, 1, 8 // q.bits) for q in whole_weights.MICROSCALED),
        (Quantization("pack_quantized", 4, strategy="group", group_size=32, scale_dtype="BF16"), 1, 8),
        (Quantization("pack_quantized", 4, strategy="channel", symmetric=False, scale_dtype="BF16"), 8, 8),
        (Quantization("pack_quantized", 8, strategy="channel", symmetric=False, scale_dtype="BF16"), 4, 4),
        (Quantization("pack_quantized", 3, strategy="channel", symmetric=False, scale_dtype="BF16"), 32, 32),
        (Quantization("pack_quantized", 6, strategy="channel", symmetric=False, scale_dtype="BF16"), 16, 16),
        (Quantization("awq", 4, strategy="group", group_size=128, symmetric=False, scale_dtype="F16"), 8, 1),
        (Quantization("gptq", 4, strategy="group", group_size=128, scale_dtype="F16"), 8, 8),
        (Quantization("gptq", 3, strategy="channel", symmetric=False, scale_dtype="F16"), 32, 32),
    ],
)
def test_a_matrix_is_cut_where_no_element_of_a_part_is(quantization, rows, columns):
    """Packed words hold whole numbers again after so many: 32 bits hold eight of four, three words hold 32 of three."""
    assert formats.whole(quantization) == (rows, columns)
