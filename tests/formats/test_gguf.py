"""GGUF's types: what they are called and take, what they decode to, and kv_b in two parts."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import whole_weights
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_files import joined
from safetensors.torch import load_file

from mtpforge import formats
from mtpforge.errors import MtpforgeError
from mtpforge.ggml import CODED, TYPES
from mtpforge.tensors import Spec, TensorRef
from mtpforge.weights import Reader, StoredWeight

VECTORS = load_file(Path(__file__).parents[1] / "data" / "vectors" / "gguf-all-types.safetensors")
NAMES = sorted(key.removeprefix("dequant.") for key in VECTORS if key.startswith("dequant."))


def test_the_table_of_types_is_the_package_s():
    assert {n: (t.name, t.block, t.n_bytes) for n, t in TYPES.items()} == {
        kind.value: (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()
    }
    decoded = {kind.name for kind in gguf.quants._type_traits} | {"F32", "F16"}
    assert {t.name for t in TYPES.values() if t.is_read} == decoded
    assert {t.name: t.bits for t in CODED.values() if t.bits not in (2, 3, 4)} == {
        "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q6_K": 6, "Q8_0": 8, "IQ1_S": 1, "IQ1_M": 1, "TQ1_0": 1,
    }  # fmt: skip


def test_there_is_a_vector_of_every_type_that_is_read():
    assert {*NAMES} | {"F32", "F16"} == {t.name for t in TYPES.values() if t.is_read} | {"F32", "F16"}


@pytest.mark.parametrize("name", NAMES)
def test_a_matrix_of_every_type_is_told_by_its_part_and_decodes_to_the_package_s_values(name):
    raw, expected = VECTORS[f"disk.{name}"], VECTORS[f"dequant.{name}"]
    stored_as = next(t for t in TYPES.values() if t.name == name)
    part = raw.view(torch.bfloat16) if name == "BF16" else raw
    dtype = "BF16" if name == "BF16" else "U8"
    form, quantization = whole_weights.recognise({stored_as.part: Spec(dtype, tuple(part.shape))}, (2, 256), {})
    assert formats.label(quantization) == name
    values = form.decode({stored_as.part: part}, (2, 256), quantization)
    assert values.dtype == torch.float32
    assert np.array_equal(values.numpy(), expected.numpy(), equal_nan=True)


@pytest.mark.parametrize("name", sorted(CODED))
def test_bytes_that_are_no_whole_rows_are_told_as_such(name):
    stored_as = CODED[name]
    held = {stored_as.part: Spec("U8", (4, 2 * stored_as.n_bytes))}
    with pytest.raises(MtpforgeError, match="no known way") as caught:
        whole_weights.recognise(held, (4, 3 * stored_as.block), {})
    assert f"nearest is gguf ({name}): {stored_as.part} is [4, {2 * stored_as.n_bytes}] instead of" in caught.value.why


def test_the_scale_of_a_whole_matrix_multiplies():
    raw, expected = VECTORS["disk.NVFP4"], VECTORS["dequant.NVFP4"]
    for shape in ((), (1,)):
        scale = torch.full(shape, 0.0078125)
        parts = {"weight_nvfp4": raw, "scale": scale}
        specs = {"weight_nvfp4": Spec("U8", tuple(raw.shape)), "scale": Spec("F32", shape)}
        form, quantization = whole_weights.recognise(specs, (2, 256), {})
        assert torch.equal(form.decode(parts, (2, 256), quantization), expected * 0.0078125)
    with pytest.raises(MtpforgeError):
        whole_weights.recognise(specs | {"scale": Spec("F32", (2,))}, (2, 256), {})


def halves(kinds, heads=5, lora=64, keys=96, n_values=160):
    """The parts of a kv_b by suffix, as tensors, and what the matrix is."""
    found, dense = {}, {}
    shapes = {"k_b": (heads, lora, keys), "v_b": (heads, n_values, lora)}
    generator = np.random.default_rng(5)
    for half, kind in zip(shapes, kinds, strict=True):
        raw = gguf.quants.quantize(generator.standard_normal(shapes[half], np.float32), kind)
        dense[half] = torch.from_numpy(np.array(gguf.quants.dequantize(raw, kind)).reshape(shapes[half]))
        stored_as = TYPES[kind.value]
        tensor = torch.from_numpy(raw)
        if stored_as.dtype:
            tensor = tensor.view({"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[stored_as.dtype])
        found[half if stored_as.dtype else f"{half}_{kind.name.lower()}"] = tensor
    return found, joined(dense["k_b"], dense["v_b"])


KINDS = GGMLQuantizationType
SPLITS = {
    (KINDS.Q8_0, KINDS.Q4_0): "Q4_0 in two parts",
    (KINDS.Q4_0, KINDS.Q8_0): "Q4_0 in two parts",
    (KINDS.BF16, KINDS.Q5_1): "Q5_1 in two parts",
    (KINDS.F16, KINDS.F16): "F16 in two parts",
}
NAMED = {torch.uint8: "U8", torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def specs(parts):
    return {suffix: Spec(NAMED[tensor.dtype], tuple(tensor.shape)) for suffix, tensor in parts.items()}


@pytest.mark.parametrize("kinds", SPLITS, ids=lambda kinds: "-".join(kind.name for kind in kinds))
def test_kv_b_is_joined_of_keys_turned_back_and_values_band_by_band(kinds):
    """Heads of 256 rows and bands of 128: most bands begin or end inside a head."""
    parts, expected = halves(kinds, keys=96, n_values=224)
    assert tuple(expected.shape) == (5 * 320, 64)
    _, quantization = whole_weights.recognise(specs(parts), tuple(expected.shape), {})
    assert formats.label(quantization) == SPLITS[kinds]
    raw = {suffix: tensor.contiguous().view(torch.uint8).numpy().tobytes() for suffix, tensor in parts.items()}
    refs = {s: TensorRef(s, spec, "x", 0, len(raw[s])) for s, spec in specs(parts).items()}
    read = []

    def fill(ref, into):
        read.append((ref.name, ref.stop - ref.start))
        into[:] = raw[ref.name][ref.start : ref.stop]

    weight = StoredWeight(Reader(fill), refs, tuple(expected.shape), quantization)
    for height in (128, 256, 384, 0):
        bands = list(weight.bands(height))
        assert torch.equal(torch.cat([band.decoded() for band in bands]), expected)
        assert [(band.first, band.last) for band in bands][-1][1] == 1600
    read.clear()
    assert torch.equal(weight.open().band(384, 512).decoded(), expected[384:512])
    assert sum(n for _, n in read) == sum(len(r) for r in raw.values()) // 5, "one head of five"


def test_two_parts_that_do_not_belong_together_are_in_no_format():
    parts, expected = halves((KINDS.Q8_0, KINDS.Q4_0))
    shape = tuple(expected.shape)
    good = specs(parts)
    assert whole_weights.recognise(good, shape, {})
    wrong = [
        {"k_b_q8_0": good["k_b_q8_0"]},
        good | {"scale": Spec("F32", ())},
        good | {"k_b_q8_0": Spec("U8", (5, 64, 103))},
        good | {"k_b_q8_0": Spec("U8", (4, 64, 102))},
        good | {"v_b_q4_0": Spec("U8", (5, 0, 36))},
        good | {"v_b_q4_0": Spec("U8", (5, 160))},
        {"k_b_q8_0": good["k_b_q8_0"], "v_b": Spec("I32", (5, 160, 64))},
    ]
    for held in wrong:
        with pytest.raises(MtpforgeError, match="no known way"):
            whole_weights.recognise(held, shape, {})


def test_nothing_is_written_so():
    for name in ("gguf", "gguf_split"):
        assert formats.FORMATS[name].encode is formats.FORMATS[name].matrix_parts is None
