"""What a build makes of weights, and which it refuses; plans by hand over a small folder."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_plans import DENSE, FP8, INT4, MODELOPT, NVFP4, carry, checkpoint, move, plan, scale, weight

from mtpforge.building import build
from mtpforge.errors import MtpforgeError
from mtpforge.formats import FORMATS
from mtpforge.planning.steps import Step
from mtpforge.tensors import Quantization

SHAPE = (640, 256)


def stored(quantization, values):
    """Parts of a weight for a source; how they were made does not matter here."""
    form = FORMATS[quantization.format]
    matrix = form.matrix_parts(tuple(values.shape), quantization, values.abs().amax())
    return matrix | form.encode(values, quantization, matrix)


def refused(source, steps, out, **options):
    with pytest.raises(MtpforgeError) as caught:
        build(plan(source, steps), {"source": source}, out, check="off", **options)
    assert [p.name for p in out.parent.iterdir() if p.name != "source"] == []
    return caught.value


def test_carried_tensors_are_the_library_file(dense, tmp_path):
    source, made, tensors = dense
    draft = build(made, {"source": source}, tmp_path / "draft", check="off")
    save_file(tensors, tmp_path / "library", metadata={"format": "pt"})
    assert (tmp_path / "draft" / "model.safetensors").read_bytes() == (tmp_path / "library").read_bytes()
    assert sorted(p.name for p in draft.path.iterdir()) == [
        "LICENSE",
        "NOTICE",
        "config.json",
        "model.safetensors",
        "mtpforge.json",
    ]
    assert (draft.path / "config.json").read_text() == '{\n  "model_type": "glm_moe_dsa"\n}\n'
    assert (draft.path / "LICENSE").read_text() == "MIT"
    assert (
        (draft.path / "NOTICE")
        .read_text()
        .startswith(f"theirs\n\nThe weights of this draft are layer 3 of {source.identity}")
    )


@pytest.mark.parametrize("workers", [2, 4])
def test_number_of_workers_changes_no_byte(dense, tmp_path, workers):
    source, made, _ = dense
    one = build(made, {"source": source}, tmp_path / "one", workers=1, check="off")
    many = build(made, {"source": source}, tmp_path / "many", workers=workers, check="off")
    assert {p.name: p.read_bytes() for p in one.path.iterdir()} == {p.name: p.read_bytes() for p in many.path.iterdir()}


def test_shards_get_an_index_of_the_layer(dense, tmp_path):
    source, made, tensors = dense
    draft = build(made, {"source": source}, tmp_path / "draft", check="off", max_shard_bytes=8192)
    index = json.loads((draft.path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    assert {p.name for p in draft.path.glob("*.safetensors")} == set(index["weight_map"].values())


def test_kept_rows_and_cast(tmp_path):
    router = weight(12, 64, 1, torch.float32)
    source = checkpoint(tmp_path / "source", {"gate.weight": router, "bias": torch.arange(12, dtype=torch.bfloat16)})
    kept = (0, 1, 5, 6, 7, 11)
    steps = [carry(source, "gate.weight", "BF16", kept), carry(source, "bias", "F32", kept)]
    draft = build(plan(source, steps), {"source": source}, tmp_path / "draft", check="off")
    made = load_file(draft.path / "model.safetensors")
    assert torch.equal(made["gate.weight"], router[list(kept)].bfloat16())
    assert torch.equal(made["bias"], torch.tensor(kept, dtype=torch.float32))


@pytest.mark.parametrize("quantization", [DENSE, FP8, MODELOPT, INT4], ids=str)
def test_weight_stored_as_demanded_is_copied_byte_for_byte(tmp_path, quantization):
    parts = {f"m.{s}": t for s, t in stored(quantization, weight(*SHAPE).float()).items()}
    source = checkpoint(tmp_path / "source", parts)
    steps = [Step(moves=(move(source, "m", SHAPE, quantization, quantization, action="copy"),))]
    draft = build(plan(source, steps), {"source": source}, tmp_path / "draft", check="off")
    save_file(parts, tmp_path / "library", metadata={"format": "pt"})
    assert (draft.path / "model.safetensors").read_bytes() == (tmp_path / "library").read_bytes()


def test_scale_is_widened_without_loss_in_a_copy(tmp_path):
    narrow = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="BF16")
    parts = {f"m.{s}": t for s, t in stored(narrow, weight(*SHAPE).float()).items()}
    source = checkpoint(tmp_path / "source", parts)
    steps = [Step(moves=(move(source, "m", SHAPE, narrow, FP8, action="copy"),))]
    draft = build(plan(source, steps), {"source": source}, tmp_path / "draft", check="off")
    made = load_file(draft.path / "model.safetensors")
    assert torch.equal(made["m.weight_scale_inv"], parts["m.weight_scale_inv"].float())


def test_bands_make_what_the_library_makes_of_the_whole(tmp_path):
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    values = weight(*SHAPE).float()
    source = checkpoint(tmp_path / "source", {"m.weight": values})
    dense = Quantization("dense", 32, "F32")
    steps = [Step(moves=(move(source, "m", SHAPE, dense, INT4),))]
    draft = build(plan(source, steps), {"source": source}, tmp_path / "draft", check="off")
    made = load_file(draft.path / "model.safetensors")

    args = QuantizationArgs(
        num_bits=4, type="int", strategy="group", group_size=32, symmetric=False, scale_dtype=torch.bfloat16
    )
    groups = values.view(SHAPE[0], -1, 32)
    scales, zero_points = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    state = {"weight": values, "weight_scale": scales, "weight_zero_point": zero_points}
    expected = PackedQuantizationCompressor.compress(state, scheme)
    assert set(made) == {f"m.{s}" for s in expected if s != "weight_g_idx"}
    for suffix in expected:
        assert torch.equal(made[f"m.{suffix}"], expected[suffix].to(made[f"m.{suffix}"].dtype)), suffix


def test_gate_and_up_share_one_global_scale_from_the_larger(tmp_path):
    gate, up = weight(*SHAPE, 1), weight(*SHAPE, 2) * 3
    source = checkpoint(tmp_path / "source", {"gate.weight": gate, "up.weight": up})
    pair = tuple(move(source, n, SHAPE, DENSE, NVFP4) for n in ("gate", "up"))
    draft = build(plan(source, [Step(moves=pair, ties=True)]), {"source": source}, tmp_path / "draft", check="off")
    made = load_file(draft.path / "model.safetensors")
    expected = torch.tensor([448 * 6]) / up.float().abs().amax()
    assert torch.equal(made["gate.weight_global_scale"], expected)
    assert torch.equal(made["up.weight_global_scale"], expected)


@pytest.mark.parametrize("factor", [1, 2])
def test_tied_copies_stay_copies_only_while_their_global_scales_agree(tmp_path, factor):
    values = weight(*SHAPE).float()
    gate, up = stored(MODELOPT, values), stored(MODELOPT, values * factor)
    parts = {f"gate.{s}": t for s, t in gate.items()} | {f"up.{s}": t.clone() for s, t in up.items()}
    source = checkpoint(tmp_path / "source", parts)
    pair = tuple(move(source, n, SHAPE, MODELOPT, MODELOPT, action="copy") for n in ("gate", "up"))
    step = Step(moves=pair, ties=True, tied_suffix="weight_scale_2")
    made = load_file(
        build(plan(source, [step]), {"source": source}, tmp_path / "draft", check="off").path / "model.safetensors"
    )
    assert torch.equal(made["gate.weight_scale_2"], made["up.weight_scale_2"])
    assert all(torch.equal(made[n].float(), t.float()) for n, t in parts.items()) == (factor == 1)
    assert float(made["up.weight_scale_2"]) == pytest.approx(float(up["weight_scale_2"]), rel=1e-6)


def test_input_scale_is_the_largest_in_the_convention_of_the_draft(tmp_path):
    source = checkpoint(
        tmp_path / "source", {f"{i}.input_scale": torch.tensor(s) for i, s in enumerate((0.5, 0.75, 0.25))}
    )
    names = [f"{i}.input_scale" for i in range(3)]
    steps = [
        scale(source, names, "same"),
        scale(source, names, "fp8", made=(448.0, False)),
        scale(source, names, "ct", made=(2688.0, True)),
    ]
    made = load_file(
        build(plan(source, steps), {"source": source}, tmp_path / "draft", check="off").path / "model.safetensors"
    )
    assert {n: float(t) for n, t in made.items()} == {"same": 0.75, "fp8": 4.5, "ct": pytest.approx(1 / 0.75)}


@pytest.mark.parametrize(("bad", "place"), [(float("nan"), [300, 7]), (float("inf"), [639, 255])])
@pytest.mark.parametrize("wanted", [INT4, NVFP4, DENSE], ids=str)
def test_weight_that_is_no_number_is_refused_by_name(tmp_path, bad, place, wanted):
    values = weight(*SHAPE)
    values[tuple(place)] = bad
    source = checkpoint(tmp_path / "source", {"m.weight": values})
    action = "copy" if wanted == DENSE else "encode"
    error = refused(source, [Step(moves=(move(source, "m", SHAPE, DENSE, wanted, action=action),))], tmp_path / "draft")
    assert error.what == "the source holds a number that no weight may hold"
    assert error.where == f"{tmp_path / 'source'}/model.safetensors, tensor m.weight"
    assert f"value {place}" in error.why
    assert error.code == 3


AWQ = Quantization("awq", 4, strategy="group", group_size=64, symmetric=False, scale_dtype="F16")
GPTQ = Quantization("gptq", 4, "gptq", "group", 64, scale_dtype="F16")


@pytest.mark.parametrize("wanted", [AWQ, GPTQ, replace(INT4, scale_dtype="F16")], ids=str)
@pytest.mark.parametrize("large", [450_000.0, 500_000.0])
def test_weight_that_a_scale_in_f16_cuts_off_is_refused_by_name(tmp_path, wanted, large):
    """Half a range of 15 steps of 65,504: the libraries clamp the scale and say nothing."""
    values = weight(*SHAPE).float()
    values[300, 7], values[300, 8] = large, -large
    source = checkpoint(tmp_path / "source", {"m.weight": values})
    form = replace(DENSE, scale_dtype="F32")
    steps = [Step(moves=(move(source, "m", SHAPE, form, wanted, action="encode"),))]
    if large < 65_504 * 7.5:
        build(plan(source, steps), {"source": source}, tmp_path / "draft", check="off")
        return
    error = refused(source, steps, tmp_path / "draft")
    assert error.what == "a weight of `m` is too large for scales in F16"
    assert error.where == f"{tmp_path / 'source'}/model.safetensors, tensor m.weight"
    assert "scale above 65,504" in error.why
    assert error.code == 3


def test_carried_tensor_that_is_no_number_is_refused_by_name(tmp_path):
    values = weight(12, 64)
    values[11, 3] = float("nan")
    source = checkpoint(tmp_path / "source", {"norm": values})
    assert refused(source, [carry(source, "norm")], tmp_path / "draft").why == "value [11, 3] is not a finite number"


INT8 = Quantization("pack_quantized", 8, strategy="channel", scale_dtype="BF16")
MXFP8 = Quantization("mxfp8", 8, strategy="group", group_size=32, scale_dtype="U8")
SCALES = [
    (MODELOPT, "weight_scale_2", ()),
    (NVFP4, "weight_global_scale", (0,)),
    (MODELOPT, "weight_scale", (200, 3)),
    (FP8, "weight_scale_inv", (4, 1)),
    (INT4, "weight_scale", (639, 7)),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("action", ["copy", "encode"])
@pytest.mark.parametrize("byte", [0, 255])
def test_an_exponent_of_no_number_is_refused_and_the_least_is_not(tmp_path, byte, action):
    parts = stored(MXFP8, weight(*SHAPE).float())
    parts["weight_scale"][200, 3] = byte
    source = checkpoint(tmp_path / "source", {f"m.{s}": t for s, t in parts.items()})
    steps = [Step(moves=(move(source, "m", SHAPE, MXFP8, MXFP8 if action == "copy" else DENSE, action=action),))]
    if byte:
        error = refused(source, steps, tmp_path / "draft")
        assert error.where == f"{tmp_path / 'source'}/model.safetensors, tensor m.weight_scale"
        assert error.why == "value [200, 3] is not a finite number"
        return
    made = load_file(
        build(plan(source, steps), {"source": source}, tmp_path / "d", check="full").path / "model.safetensors"
    )
    if action == "copy":
        assert torch.equal(made["m.weight_scale"], parts["weight_scale"])
    else:
        assert torch.equal(
            made["m.weight"][200, 96:128], (parts["weight"][200, 96:128].double() * 2.0**-127).bfloat16()
        )


@pytest.mark.parametrize("action", ["copy", "encode"])
@pytest.mark.parametrize("bad", [0.0, float("nan")])
@pytest.mark.parametrize(("quantization", "suffix", "place"), SCALES, ids=str)
def test_zero_and_nan_scales_are_refused_by_name(*, tmp_path, quantization, suffix, place, bad, action):
    parts = stored(quantization, weight(*SHAPE).float())
    assert float(parts[suffix][place]) not in {0.0, bad}
    parts[suffix][place] = bad
    source = checkpoint(tmp_path / "source", {f"m.{s}": t for s, t in parts.items()})
    wanted = quantization if action == "copy" else Quantization("dense", 16, "BF16")
    error = refused(
        source, [Step(moves=(move(source, "m", SHAPE, quantization, wanted, action=action),))], tmp_path / "draft"
    )
    assert error.where == f"{tmp_path / 'source'}/model.safetensors, tensor m.{suffix}"
    assert (f"value {list(place)}" if place else "its value") in error.why
    assert ("zero scale" in error.why) == (bad == 0)


@pytest.mark.parametrize("action", ["copy", "encode"])
@pytest.mark.parametrize(
    ("quantization", "suffix"), [(MODELOPT, "weight_scale_2"), (NVFP4, "weight_global_scale")], ids=str
)
def test_negative_scale_of_a_whole_matrix_is_refused_by_name(tmp_path, quantization, suffix, action):
    """It decodes to the source's weights with every sign turned, which no comparison with that source would show."""
    parts = stored(quantization, weight(*SHAPE).float())
    assert float(parts[suffix]) > 0
    parts[suffix].neg_()
    source = checkpoint(tmp_path / "source", {f"m.{s}": t for s, t in parts.items()})
    wanted = quantization if action == "copy" else Quantization("dense", 16, "BF16")
    step = Step(moves=(move(source, "m", SHAPE, quantization, wanted, action=action),))
    error = refused(source, [step], tmp_path / "draft")
    assert error.where == f"{tmp_path / 'source'}/model.safetensors, tensor m.{suffix}"
    assert error.why == "its value is a negative scale"


@pytest.mark.parametrize(("quantization", "place"), [(INT4, (639, 7)), (INT8, (639, 0))], ids=str)
def test_negative_scale_of_a_group_or_row_is_the_source_s_own_choice(tmp_path, quantization, place):
    parts = stored(quantization, weight(*SHAPE).float())
    parts["weight_scale"][place] *= -1
    assert float(parts["weight_scale"][place]) < 0
    source = checkpoint(tmp_path / "source", {f"m.{s}": t for s, t in parts.items()})
    step = Step(moves=(move(source, "m", SHAPE, quantization, DENSE),))
    build(plan(source, [step]), {"source": source}, tmp_path / "draft", check="off")


def test_zero_block_scale_over_zero_codes_is_sound(tmp_path):
    values = weight(*SHAPE).float()
    values[200, 48:64] = 0
    parts = stored(MODELOPT, values)
    parts["weight_scale"][200, 3] = 0
    source = checkpoint(tmp_path / "source", {f"m.{s}": t for s, t in parts.items()})
    build(
        plan(source, [Step(moves=(move(source, "m", SHAPE, MODELOPT, MODELOPT, action="copy"),))]),
        {"source": source},
        tmp_path / "draft",
        check="off",
    )
