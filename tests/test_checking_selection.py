"""Which rows of which weights are compared."""

from dataclasses import replace

from mtpforge import checking, formats
from mtpforge.checking import choose
from mtpforge.tensors import BF16, Quantization, Spec, TensorRef

INT4 = Quantization("pack_quantized", 4, "", "group", 32, symmetric=False, scale_dtype="BF16")
BLOCK = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32")
NVFP4 = formats.nvfp4.quantization(static=False)


def move(number, leaf, quantization, shape=(4096, 2048), kind="routed experts", **extra):
    from mtpforge.planning import Move

    form = formats.FORMATS[quantization.format]
    specs = form.layout(shape, quantization) | extra
    reads = {s: TensorRef(s, spec, "f", 0, spec.n_bytes) for s, spec in specs.items()}
    module = f"mlp.experts.{number}.{leaf}"
    return Move(module, kind, shape, reads, quantization, quantization, "copy", (), "")


def name(sample):
    return f"{sample.module}[{sample.rows[0]}:{sample.rows[1]}]"


def steps(*moves):
    from mtpforge.planning import Step

    return [Step(moves=(m,)) for m in moves]


def test_a_small_layer_is_compared_whole():
    selection = choose(steps(move(0, "gate_proj", INT4), move(0, "up_proj", BLOCK)), "sample")
    assert selection.mode == "full"
    assert [name(s) for s in selection.samples] == [
        "mlp.experts.0.gate_proj[0:2048]",
        "mlp.experts.0.gate_proj[2048:4096]",
        "mlp.experts.0.up_proj[0:2048]",
        "mlp.experts.0.up_proj[2048:4096]",
    ]
    assert selection.bands == {f"mlp.experts.0.{leaf}": [(0, 2048), (2048, 4096)] for leaf in ("gate_proj", "up_proj")}


def test_a_sample_covers_every_kind_and_format_and_is_bounded():
    moves = [move(e, leaf, INT4) for e in range(64) for leaf in ("gate_proj", "up_proj")]
    moves += [move(0, "o_proj", BLOCK, (6144, 16384), "attention"), move(64, "up_proj", NVFP4)]
    selection = choose(steps(*moves), "sample")
    assert selection.mode == "sample"
    assert [name(s) for s in selection.samples] == [
        "mlp.experts.0.gate_proj[0:2048]",
        "mlp.experts.31.gate_proj[2048:4096]",
        "mlp.experts.63.gate_proj[2048:4096]",
        "mlp.experts.0.up_proj[0:2048]",
        "mlp.experts.31.up_proj[2048:4096]",
        "mlp.experts.63.up_proj[2048:4096]",
        "mlp.experts.0.o_proj[0:256]",
        "mlp.experts.0.o_proj[2816:3072]",
        "mlp.experts.0.o_proj[5888:6144]",
        "mlp.experts.64.up_proj[0:2048]",
        "mlp.experts.64.up_proj[2048:4096]",
    ]
    assert choose(steps(*moves), "sample") == selection
    assert len(choose(steps(*moves), "full").samples) == 2 * (len(moves) - 1) + 24


def test_an_input_scale_makes_no_kind_of_its_own():
    """It plays no part in decoding: no bands are drawn for it."""
    plain = [move(e, "up_proj", NVFP4) for e in range(64)]
    mixed = [move(e, "up_proj", replace(NVFP4, input_scale="static" if e % 2 else "none")) for e in range(64)]
    drawn = [[name(s) for s in choose(steps(*moves), "sample").samples] for moves in (plain, mixed)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 3


def test_what_cannot_be_compared_is_counted_by_reason():
    old = Quantization("pack_quantized", 3, "", "group", 32, scale_dtype="BF16")
    odd = [
        move(0, "gate_proj", BF16),
        move(1, "gate_proj", BF16),
        move(2, "gate_proj", INT4, weight_g_idx=Spec("I32", (2048,))),
        move(3, "gate_proj", old, weight_packed=Spec("I32", (4096, 205))),
    ]
    selection = choose(steps(*odd), "full")
    assert selection.samples == ()
    assert selection.uncompared == {
        "dense, nothing to decode": 2,
        "act-order, which compressed-tensors no longer reads": 1,
        "packed as compressed-tensors 0.17.1 and earlier did, which it no longer reads": 1,
    }


def test_what_cannot_be_compared_makes_no_layer_large():
    dense = move(0, "o_proj", BF16, (6144, 16384), "attention")
    assert choose(steps(move(0, "gate_proj", INT4), dense), "sample").mode == "full"


def test_off_chooses_nothing():
    assert choose(steps(move(0, "gate_proj", INT4)), "off") == checking.Selection("off", ())


def test_only_a_small_layer_is_a_little():
    few = choose(steps(move(0, "gate_proj", NVFP4)), "sample")
    assert (few.mode, few.is_little) == ("full", True)
    one = few.samples[0]
    assert not checking.Selection("sample", (one,)).is_little  # some bands of a large layer
    many = checking.Selection("full", tuple(one for _ in range(3)))
    assert one.n_elements * 3 > checking.selection.LITTLE >= one.n_elements * 2
    assert not many.is_little
