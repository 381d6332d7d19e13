"""StoredWeight at real size: several bands, parts along either axis, against plain loops."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from slow_twins import layouts, packers
from small_plans import DENSE, FP8, INT4, checkpoint, move, plan
from whole_weights import MICROSCALED

from mtpforge.building import build
from mtpforge.planning.facts import peak_bytes
from mtpforge.planning.steps import Step
from mtpforge.tensors import Quantization
from mtpforge.weights import Reader, StoredWeight
from mtpforge.weights.bands import bands

AWQ = Quantization("awq", 4, "", "group", 128, symmetric=False, scale_dtype="F16")
SHAPE = (1408, 6144)
PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # which of its eight rows each nibble of a word is, lowest bits first
HELD = 6144 * 176 * 4 + 48 * 176 * 4 + 48 * 1408 * 2  # bytes of qweight, qzeros, scales


def awq_parts(shape, size):
    rows, columns = shape
    seed = torch.Generator().manual_seed(0)

    def words(n):
        return torch.randint(-(2**31), 2**31, (n, rows // 8), generator=seed, dtype=torch.int64).to(torch.int32)

    scales = (torch.rand(columns // size, rows, generator=seed) * 0.01 + 1e-3).half()
    return {"qweight": words(columns), "qzeros": words(columns // size), "scales": scales}


def awq_values(parts, size):
    """Float32 [out, in]: nibble by nibble."""
    codes, zeros = parts["qweight"], parts["qzeros"]
    values = torch.empty(codes.shape[1] * 8, codes.shape[0])
    for nibble, place in enumerate(PLACES):
        code, zero = (codes >> 4 * nibble) & 15, ((zeros >> 4 * nibble) & 15).repeat_interleave(size, 0)
        scale = parts["scales"][:, place::8].float().repeat_interleave(size, 0)
        values[place::8] = ((code - zero).float() * scale).t()
    return values


@pytest.fixture(scope="module")
def awq(tmp_path_factory):
    parts = awq_parts(SHAPE, 128)
    named = {f"m.{suffix}": part for suffix, part in parts.items()}
    return checkpoint(tmp_path_factory.mktemp("awq") / "source", named), awq_values(parts, 128)


def test_awq_of_real_size_decodes_band_by_band(awq):
    source, values = awq
    refs = move(source, "m", SHAPE, AWQ, DENSE).reads
    stored = StoredWeight(Reader(source.read), refs, SHAPE, AWQ)
    assert len(list(bands(SHAPE))) > 2
    assert torch.equal(torch.cat([band.decoded() for band in stored.bands()]), values)
    assert torch.equal(stored.open().band(1280, 1408).decoded(), values[1280:])


@pytest.mark.slow
def test_awq_of_real_size_is_built_as_the_library_reads_it(awq, tmp_path):
    """check="full": compressed-tensors decodes every band too, and a difference ends the build."""
    source, values = awq
    step = Step(moves=(move(source, "m", SHAPE, AWQ, DENSE),))
    draft = build(plan(source, [step]), {"source": source}, tmp_path / "draft", check="full")
    assert torch.equal(load_file(draft.path / "model.safetensors")["m.weight"], values.bfloat16())


def test_awq_of_real_size_becomes_int4_within_its_rounding(awq, tmp_path):
    source, values = awq
    step = Step(moves=(move(source, "m", SHAPE, AWQ, INT4),))
    draft = build(plan(source, [step]), {"source": source}, tmp_path / "draft", check="off")
    parts = {name.removeprefix("m."): part for name, part in load_file(draft.path / "model.safetensors").items()}
    steps = parts["weight_scale"].float().repeat_interleave(32, 1)
    # half a step, and what 15 steps of a scale that BF16 rounded may clip
    assert bool(((layouts.integers(parts) - values).abs() <= steps * (0.5 + 15 / 256 + 1e-4)).all())


def gptq_values(parts, size):
    """Float32 [out, in]: byte by byte, symmetric."""
    codes = torch.stack([(parts["qweight"] >> 8 * byte) & 255 for byte in range(4)], 1).flatten(0, 1)
    return ((codes - 128).float() * parts["scales"].float().repeat_interleave(size, 0)).t()


@pytest.mark.parametrize(
    ("stored", "values", "steps"),
    [
        (AWQ, awq_values, 0.5 + 15 / 2048),
        (Quantization("gptq", 8, "", "group", 128, scale_dtype="F16"), gptq_values, 0.5 + 128 / 2048),
    ],
    ids=lambda of: getattr(of, "format", ""),
)
def test_weights_laid_out_by_inputs_are_written_band_by_band(stored, values, steps, tmp_path):
    """Every band has a piece of every line of the file; the last band is short."""
    shape = (1376, 6144)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5)).bfloat16()
    source = checkpoint(tmp_path / "source", {"m.weight": weight})
    step = Step(moves=(move(source, "m", shape, DENSE, stored),))
    assert len(list(bands(shape))) > 2
    draft = build(plan(source, [step]), {"source": source}, tmp_path / "draft", check="off")
    parts = {name.removeprefix("m."): part for name, part in load_file(draft.path / "model.safetensors").items()}
    scale = parts["scales"].float().repeat_interleave(128, 0).t()
    assert bool(((values(parts, 128) - weight.float()).abs() <= scale * (steps + 1e-4)).all())
    assert peak_bytes(step) == 640 * 6144 * 16 + sum(part.nbytes for part in parts.values())


@pytest.mark.parametrize("symmetric", [True, False])
def test_quark_s_int4_of_real_size_decodes_band_by_band(tmp_path, symmetric):
    shape = 736, 2048
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    parts, values = packers.quark_int4(weight, 128, symmetric=symmetric)
    quantization = Quantization("quark_int4", 4, "", "group", 128, symmetric=symmetric, scale_dtype="F16")
    source = checkpoint(tmp_path / "source", {f"m.{suffix}": part.contiguous() for suffix, part in parts.items()})
    refs = {name.removeprefix("m."): ref for name, ref in source.locate([f"m.{suffix}" for suffix in parts]).items()}
    stored = StoredWeight(Reader(source.read), refs, shape, quantization)
    assert torch.equal(torch.cat([band.decoded() for band in stored.bands()]), values)
    assert torch.equal(stored.open().band(640, 736).decoded(), values[640:])


@pytest.mark.parametrize(("bits", "kind"), [(4, "gptq"), (3, "gptq"), (8, "gptq_v2"), (5, "gptq_p")])
def test_gptq_of_real_size_decodes_band_by_band(tmp_path, bits, kind):
    """The last band is short, and 3 and 5 bits of zero points straddle words of rows."""
    shape, seed = (736, 2048), torch.Generator().manual_seed(bits)
    weight = torch.randn(shape, generator=seed)
    parts, values = packers.gptq(weight, bits, 128, kind=kind, shuffled=True)
    quantization = Quantization(kind, bits, "", "group", 128, symmetric=False, scale_dtype="F16")
    source = checkpoint(tmp_path / "source", {f"m.{suffix}": part.contiguous() for suffix, part in parts.items()})
    refs = move(source, "m", shape, quantization, DENSE).reads | source.locate(["m.g_idx"])
    refs["g_idx"] = refs.pop("m.g_idx")
    stored = StoredWeight(Reader(source.read), refs, shape, quantization)
    read = [band.decoded() for band in stored.bands(128)]
    assert len(read) > 3
    assert torch.equal(torch.cat(read), values)
    assert torch.equal(stored.open().band(640, 736).decoded(), values[640:])


def test_the_memory_of_a_plan_counts_parts_that_are_held_whole(awq):
    step = Step(moves=(move(awq[0], "m", SHAPE, AWQ, DENSE),))
    assert peak_bytes(step) == 640 * 6144 * 16 + HELD


def test_fp8_blocks_of_a_short_last_band_get_their_own_scales(tmp_path):
    shape, seed = (576, 16384), torch.Generator().manual_seed(1)
    codes = torch.randn(shape, generator=seed).to(torch.float8_e4m3fn)
    scales = torch.rand(5, 128, generator=seed) + 0.5
    source = checkpoint(tmp_path / "source", {"m.weight": codes, "m.weight_scale_inv": scales})
    refs = move(source, "m", shape, FP8, DENSE).reads
    read = list(StoredWeight(Reader(source.read), refs, shape, FP8).bands())
    assert [tuple(band.parts["weight_scale_inv"].shape) for band in read] == [(2, 128), (2, 128), (1, 128)]
    decoded = torch.cat([band.decoded() for band in read])
    for row in range(0, 576, 64):
        for block in range(128):
            columns = slice(block * 128, block * 128 + 128)
            assert torch.equal(decoded[row, columns], codes[row, columns].float() * scales[row // 128, block])


@pytest.mark.slow
def test_microscaled_weights_of_real_size_are_read_and_written_within_their_steps(tmp_path):
    """Several bands, the last one short; the child that checks asks each format's own library for every band."""
    shape, seed = (1376, 6144), torch.Generator().manual_seed(2)
    assert len(list(bands(shape))) > 2
    weights = {q.format: (torch.randn(shape, generator=seed) ** 3).bfloat16() for q in MICROSCALED}
    source = checkpoint(tmp_path / "source", {f"{name}.weight": weight for name, weight in weights.items()})
    encode = [Step(moves=(move(source, q.format, shape, DENSE, q),)) for q in MICROSCALED]
    draft = build(plan(source, encode), {"source": source}, tmp_path / "draft", check="off")
    named, values = load_file(draft.path / "model.safetensors"), {}
    for q in MICROSCALED:
        parts = {name.removeprefix(f"{q.format}."): part for name, part in named.items() if name.startswith(q.format)}
        values[q.format], exact = layouts.decoded(parts), weights[q.format].float()
        steps = (2.0 ** (parts["weight_scale"].float() - 127)).repeat_interleave(32, 1)
        allowed = steps if q.bits == 4 else torch.maximum(exact.abs() / 16, steps * 2.0**-10)
        assert bool(((values[q.format] - exact).abs() <= allowed).all()), q.format

    again = checkpoint(tmp_path / "again", named)
    decode = [Step(moves=(move(again, q.format, shape, q, DENSE),)) for q in MICROSCALED]
    dense = load_file(
        build(plan(again, decode), {"source": again}, tmp_path / "dense", check="full").path / "model.safetensors"
    )
    assert dense.keys() == {f"{name}.weight" for name in values}
    assert all(torch.equal(dense[f"{name}.weight"], value.bfloat16()) for name, value in values.items())
