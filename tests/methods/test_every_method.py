"""Every method of the table: its judge lets pass what it made and nothing else, its kernels say what torch says."""

from dataclasses import replace

import pytest
import torch

from mtpforge.checkpoint.hub import cache
from mtpforge.errors import MtpforgeError
from mtpforge.formats import FORMATS
from mtpforge.methods import METHODS, method
from mtpforge.tensors import Quantization
from mtpforge.weights import Band
from mtpforge.weights.kernels import RowKernels

COLUMNS = 256
INTEGERS = [
    Quantization("pack_quantized", 4, "", "group", 32, symmetric=False, scale_dtype="BF16"),
    Quantization("pack_quantized", 4, "", "group", 128, scale_dtype="BF16"),
    Quantization("int_quantized", 8, "", "channel", scale_dtype="BF16"),
    Quantization("quark_int8", 8, "", "channel", scale_dtype="F32"),
    Quantization("awq", 4, "", "group", 128, symmetric=False, scale_dtype="F16"),
    Quantization("gptq", 8, "", "group", 32, scale_dtype="F16"),
    Quantization("quark_int4", 4, "", "group", 32, scale_dtype="BF16"),
    Quantization("quark_int4_in_order", 4, "", "group", 64, symmetric=False, scale_dtype="BF16"),
]
each = pytest.mark.parametrize("found_by", METHODS.values(), ids=METHODS)
stored = pytest.mark.parametrize("q", INTEGERS, ids=lambda q: f"{q.format}-g{q.group_size}")


@pytest.fixture(scope="module")
def weight():
    made = torch.randn(256, COLUMNS, generator=torch.Generator().manual_seed(3)) * 0.02
    return made.bfloat16().float()


@pytest.fixture(scope="module")
def kernels():
    return RowKernels(cache.home() / "kernels")


def parts_of(weight, q, found_by):
    form = FORMATS[q.format]
    matrix = form.matrix_parts(tuple(weight.shape), q, None)
    return form.search(weight, q, matrix, found_by.finder(None)) | matrix


def dense(weight):
    return Band(0, tuple(weight.shape), Quantization("dense", dtype="BF16"), {"weight": weight.bfloat16()}, {})


def judged(found_by, parts, q, weight):
    form, shape = FORMATS[q.format], tuple(weight.shape)
    return found_by.judge(parts, form, q, weight, form.decode(parts, shape, q)).beyond


@stored
@each
def test_its_judge_lets_pass_what_it_made(weight, found_by, q):
    assert not judged(found_by, parts_of(weight, q, found_by), q, weight).any()


@stored
@each
def test_its_judge_finds_the_weights_of_another_row(weight, found_by, q):
    beyond = judged(found_by, parts_of(weight.roll(1, 0), q, found_by), q, weight)
    assert beyond.any(1).all()


@stored
@each
def test_its_compiled_judge_says_what_its_judge_says(weight, kernels, found_by, q):
    if found_by.judge_rows is None:
        pytest.skip("no kernel judges it")
    form, theirs = FORMATS[q.format], dense(weight)
    if form.packed_rows is None:
        pytest.skip("no kernel decodes the format")
    if q.scale_dtype == "F16":
        pytest.skip("kernels judge scales of BF16 and FP8; the plain judge asks about others")
    bands = [Band(0, tuple(w.shape), q, parts_of(w, q, found_by), {}) for w in (weight, weight.roll(1, 0))]
    assert found_by.judge_rows(kernels, bands[0], theirs, form) is not None
    assert found_by.judge_rows(kernels, bands[1], theirs, form) is None


@pytest.mark.sampled(5)
@stored
@each
def test_its_compiled_encoder_makes_the_same_bytes(weight, kernels, found_by, q):
    if FORMATS[q.format].row_packing is None:
        pytest.skip("no kernel packs the format")
    packing = FORMATS[q.format].row_packing(COLUMNS, q, {})
    if q.scale_dtype == "F32":
        assert packing is None
        pytest.skip("kernels write scales of 16 bits")
    kernel = found_by.kernel(packing.kernel)
    if kernel is None:
        pytest.skip("no kernel searches by it")
    made = kernels.encode(dense(weight), replace(packing, kernel=kernel))
    expected = parts_of(weight, q, found_by)
    assert made
    assert all(torch.equal(part, expected[suffix]) for suffix, part in made.items())


def test_a_method_that_is_none_is_named():
    with pytest.raises(MtpforgeError) as caught:
        method("best\n")
    assert str(caught.value) == (
        "error: `best\\n` is no method of finding scales\nwhere: option `--scales`\n hint: one of " + ", ".join(METHODS)
    )
