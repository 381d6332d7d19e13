"""A scale off by an eighth in a draft that nobody vouches for is told; honest drafts of any maker are left in peace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drafts import changed, copy_without_manifest, failed
from nextn.calibration import captured, write
from other_makers import int4, modelopt_nvfp4, nvfp4
from safetensors.torch import load_file

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.hub import cache
from mtpforge.formats import FORMATS
from mtpforge.formats.modelopt_nvfp4 import quantization as modelopt_quantization
from mtpforge.formats.nvfp4 import quantization as nvfp4_quantization
from mtpforge.methods import METHODS
from mtpforge.nextn import inputs
from mtpforge.nextn.hessians import Calibration
from mtpforge.planning import plan
from mtpforge.tensors import Quantization
from mtpforge.verifying import verify
from mtpforge.verifying.unclaimed import Unclaimed
from mtpforge.weights import Band, compiling
from mtpforge.weights.kernels import RowKernels

P = "model.layers.3."
E5 = "mlp.experts.5.up_proj"


@pytest.fixture(scope="module")
def made(tinyglm, tmp_path_factory):
    """A draft without a manifest by source, target and method, made once; and the pair that it is verified with."""
    home, done = tmp_path_factory.mktemp("made"), {}

    def draft(source, target, scales="rtn"):
        key = f"{source}-{target}-{scales}"
        if key not in done:
            sides = {"source": open_checkpoint(str(tinyglm(source))), "target": open_checkpoint(str(tinyglm(target)))}
            sides["scales"] = open_checkpoint(str(tinyglm("nvfp4")))
            n, calibration, digest = 12 if target.endswith("12experts") else 16, None, ""
            if METHODS[scales].needs_inputs:
                held = inputs.read(write(home / f"{key}.safetensors", captured(tinyglm("bf16"))))
                calibration, digest = Calibration(sides["source"], sides["target"], held), held.digest
            decided = plan(
                sides["source"],
                sides["target"],
                input_scales=sides["scales"],
                scales=scales,
                kept=tuple(range(n)) if n < 16 else None,
                inputs=digest,
            )
            build(decided, sides, home / key, check="off", workers=1, calibration=calibration)
            copy_without_manifest(home / key, home / f"{key}-bare")
            done[key] = home / f"{key}-bare"
        return done[key], (open_checkpoint(str(tinyglm(target))), open_checkpoint(str(tinyglm(source))))

    return draft


@pytest.fixture(scope="module")
def foreign(made, tinyglm, tmp_path_factory):
    """A draft of BF16 weights by target and maker: our methods, or another tool's codes for every weight."""
    home, done = tmp_path_factory.mktemp("foreign"), {}
    weights = {n: t for f in tinyglm("bf16").glob("*.safetensors") for n, t in load_file(f).items() if n.startswith(P)}

    def remade(tensors, make):
        for name in [n for n in tensors if n.endswith("weight_scale")]:
            own = name.removesuffix("weight_scale")
            parts = make(weights[f"{own}weight"], tensors.get(f"{own}weight_scale_2"))
            tensors.update({own + suffix: part for suffix, part in parts.items()})

    def draft(target, maker):
        if maker in METHODS:
            return made("bf16", target, maker)
        if (target, maker) not in done:
            plain, _ = made("bf16", target)
            done[target, maker] = changed(plain, home / f"{target}-{maker}", lambda t: remade(t, OTHERS[maker]))
        return done[target, maker], made("bf16", target)[1]

    return draft


OTHERS = {
    "minmax": lambda weight, _: int4(weight, "minmax"),
    "minmax as mse": lambda weight, _: int4(weight, "mse"),
    # under its own second scale ModelOpt makes what we make, byte for byte: here that of a calibrator with some room
    "modelopt": lambda weight, scale_2: modelopt_nvfp4(weight, scale_2 * 1.3),
}
MAKERS = [
    *(("awq-int4", maker) for maker in (*METHODS, "minmax", "minmax as mse")),
    *(("nvfp4", maker) for maker in ("rtn", "modelopt")),
]
makers = pytest.mark.parametrize(("target", "maker"), MAKERS)


@pytest.fixture(params=["torch", "kernels"])
def verified(request, monkeypatch):
    if request.param == "kernels":
        monkeypatch.setattr(compiling, "WORTH_COMPILING", 0)
    return verify


def checks(report):
    return {check.name: check for check in report.checks}


@pytest.mark.sampled(3)
@makers
def test_no_honest_draft_is_called_wrong(foreign, verified, target, maker):
    draft, (served, source) = foreign(target, maker)
    report = verified(draft, served, source)
    assert not failed(report)
    assert checks(report)["values"].verdict == "passed"
    assert "groups" not in checks(report)
    assert ("what fitting may leave" in checks(report)["values"].detail) == (maker == "gptq")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("factor", [9 / 8, 7 / 8])
@makers
def test_one_scale_off_by_an_eighth_is_told(foreign, verified, tmp_path, target, maker, factor):
    draft, (served, source) = foreign(target, maker)

    def damage(tensors):
        scale = tensors[f"{P}{E5}.weight_scale"]
        wide = scale.float()
        largest = wide.where(wide <= 256, 0).argmax()  # E4M3 ends at 448
        place = divmod(int(largest), scale.shape[1])
        scale[place] = (scale[place].float() * factor).to(scale.dtype)

    found = checks(verified(changed(draft, tmp_path / "draft", damage), served, source))
    if found["values"].verdict == "failed":  # codes too far for the nearest
        assert maker != "gptq"
        assert found["values"].detail.startswith(f"1 modules are not the source's: {E5}")
        return
    assert found["groups"].verdict == "warning"
    assert found["groups"].detail.startswith(f"1 weights: {E5}: 1 of ")
    assert "groups are further from the source than all others" in found["groups"].detail


def other_expert(tensors):
    for suffix in ("weight_packed", "weight_scale", "weight_zero_point"):
        tensors[f"{P}{E5}.{suffix}"] = tensors[f"{P}mlp.experts.6.up_proj.{suffix}"].clone()


def shifted_zero(tensors):
    tensors[f"{P}{E5}.weight_zero_point"] += 0x11111111


def wider_scale(tensors):
    tensors[f"{P}{E5}.weight_scale"] *= 1.25


def next_row(tensors):
    tensors[f"{P}{E5}.weight_packed"] = tensors[f"{P}{E5}.weight_packed"].roll(1, 0)


def two_groups_swapped(tensors):
    words = tensors[f"{P}{E5}.weight_packed"].unflatten(-1, (-1, 4))
    tensors[f"{P}{E5}.weight_packed"] = words.roll(1, 1).flatten(-2)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("wrong", [other_expert, shifted_zero, wider_scale, next_row, two_groups_swapped])
@pytest.mark.parametrize("maker", [*METHODS, "minmax", "minmax as mse"])
def test_other_weights_fail_whoever_made_them(foreign, verified, tmp_path, maker, wrong):
    draft, (served, source) = foreign("awq-int4", maker)
    report = verified(changed(draft, tmp_path / "draft", wrong), served, source)
    assert E5 in failed(report)["values"]


def test_nearest_codes_of_far_too_wide_a_scale_fail(foreign, verified, tmp_path):
    """Each code is the nearest that its scale has: only rtn's error tells that half of all codes are gone."""
    draft, (served, source) = foreign("nvfp4", "modelopt")
    weights = {n: t for f in sorted(Path(source.label).glob("*.safetensors")) for n, t in load_file(f).items()}

    def coarse(tensors):
        for module in ("gate_proj", "up_proj"):
            own = f"{P}mlp.experts.5.{module}."
            tensors[own + "weight_scale_2"] *= 4
            wide = tensors[own + "weight_scale"].float() * tensors[own + "weight_scale_2"]
            quotient = weights[own + "weight"].float().unflatten(-1, (-1, 16)) / wide.unsqueeze(-1)
            grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
            codes = (quotient.abs().unsqueeze(-1) - grid).abs().argmin(-1) + 8 * (quotient < 0)
            flat = codes.flatten(-2).to(torch.uint8)
            tensors[own + "weight"] = flat[:, 0::2] | flat[:, 1::2] << 4

    report = verified(changed(draft, tmp_path / "draft", coarse), served, source)
    assert E5 in failed(report)["values"]


PAIRS = [(s, t) for s in ("bf16", "fp8", "nvfp4") for t in ("nvfp4", "awq-int4", "awq-int4-12experts", "int4-int8mix")]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_no_draft_of_ours_stands_out(made, verified, source, target):
    draft, (served, origin) = made(source, target)
    report = verified(draft, served, origin)
    assert checks(report)["values"].verdict == "passed"
    assert "groups" not in checks(report)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("scales", ["mse", "hqq"])
def test_no_searched_draft_of_8_bits_stands_out(made, verified, scales):
    draft, (served, origin) = made("bf16", "int4-int8mix", scales)
    report = verified(draft, served, origin)
    assert not failed(report)
    assert "groups" not in checks(report)


def test_values_from_a_coarser_copy_of_the_model_stand_out_nowhere(made, tinyglm):
    """A draft of BF16 weights beside their FP8 copy: hardly a group has the nearest codes of the copy."""
    draft, (served, _) = made("bf16", "awq-int4")
    assert "groups" not in checks(verify(draft, served, open_checkpoint(str(tinyglm("fp8")))))


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_codes_moved_everywhere_as_a_fit_moves_them_stand_out_nowhere(made, tmp_path, spread):
    """As gptq leaves them: every group off by codes of its own, some by far more than others."""
    draft, (served, source) = made("bf16", "awq-int4")

    def fit(tensors):
        g = torch.Generator().manual_seed(0)
        for name in [n for n in tensors if n.endswith("proj.weight_packed")]:
            words = tensors[name]
            moved = torch.rand(words.shape, generator=g) < 0.2 + spread * torch.rand((words.shape[0], 1), generator=g)
            tensors[name] = torch.where(moved, words ^ 0x11, words)

    assert "groups" not in checks(verify(changed(draft, tmp_path / "draft", fit), served, source))


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_nvfp4_of_compressed_tensors_made_in_bf16_stands_out_nowhere_and_its_damage_does(tinyglm, observer):
    """Block scales that BF16 rounded to the neighbour leave twice rtn's error, unharmed: their codes are nearest."""
    weights = {n: t for f in tinyglm("bf16").glob("*.safetensors") for n, t in load_file(f).items()}
    weight = weights[f"{P}{E5}.weight"]
    parts = nvfp4(weight, observer, 2688 / weight.float().abs().max().reshape(1))
    assert found(parts, weight) == ("", 0)
    scale = parts["weight_scale"].float()
    place = divmod(int(scale.where(scale <= 256, 0).argmax()), scale.shape[1])
    scale[place] *= 9 / 8
    damaged, beyond = found({**parts, "weight_scale": scale.to(torch.float8_e4m3fn)}, weight)
    told = f"1 of 1024 groups are further from the source than all others: [{place[0]}, {place[1] * 16}:"
    assert beyond or damaged.startswith(told)


def found(parts, weight):
    form, q = FORMATS["nvfp4"], nvfp4_quantization(static=False)
    held = Unclaimed(form, q)
    reference = weight.float()
    beyond, _ = held.add(0, parts, reference, form.decode(parts, tuple(weight.shape), q))
    return held.finding(), int(beyond.sum())


KINDS = {
    "int4 asymmetric": Quantization("pack_quantized", 4, "", "group", 32, symmetric=False, scale_dtype="BF16"),
    "int4 symmetric": Quantization("pack_quantized", 4, "", "group", 128, scale_dtype="BF16"),
    "int8 channel": Quantization("pack_quantized", 8, "", "channel", scale_dtype="BF16"),
    "nvfp4": nvfp4_quantization(static=False),
    "modelopt_nvfp4": modelopt_quantization(static=False),
}


@pytest.fixture(scope="module")
def kernels():
    return RowKernels(cache.home() / "kernels")


def flip(parts, suffix, n):
    """n codes of 4 or 8 bits become others."""
    held = parts[suffix].clone()
    flat = held.view(-1).view(torch.uint8)
    flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(n))[:n]] ^= 0x05
    return {**parts, suffix: held}


def scaled(parts, factor):
    wide = parts["weight_scale"].float()
    wide[3, 0] *= factor
    return {**parts, "weight_scale": wide.to(parts["weight_scale"].dtype)}


FAULTS = {
    "none": lambda parts, _: parts,
    "one code": lambda parts, codes: flip(parts, codes, 1),
    "many codes": lambda parts, codes: flip(parts, codes, 4000),
    "a scale an eighth more": lambda parts, _: scaled(parts, 9 / 8),
    "a scale an eighth less": lambda parts, _: scaled(parts, 7 / 8),
    "another row": lambda parts, codes: {**parts, codes: parts[codes].roll(1, 0)},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tails", [1, 5])
def test_compiled_kernels_take_no_band_that_the_plain_functions_would_not_pass(kernels, kind, fault, tails):
    form, q = FORMATS[KINDS[kind].format], KINDS[kind]
    weight = (torch.randn(128, 256, generator=torch.Generator().manual_seed(5)) ** tails * 0.02).bfloat16()
    matrix = form.matrix_parts((128, 256), q, weight.float().abs().max())
    honest = form.encode(weight.float(), q, matrix) | matrix
    parts = fault(honest, form.codes.suffix)
    ours = Band(0, (128, 256), q, parts, {})
    theirs = Band(0, (128, 256), Quantization("dense", dtype="BF16"), {"weight": weight}, {})
    bulk, plain = Unclaimed(form, q), Unclaimed(form, q)
    sums = bulk.usual(kernels, ours, theirs)
    values = form.decode(parts, (128, 256), q)
    wrong, far = plain.add(0, parts, weight.float(), values)
    if parts is honest:
        squares = [float(each.square().sum()) for each in (values - weight.float(), weight.float())]
        assert sums == pytest.approx((*squares, sums[2]), rel=1e-4)
        assert bulk.n_usual == plain.bands[0][1].ratio.numel()
        assert (bulk.has_strays, bulk.finding()) == (False, "")
    if sums is not None:
        assert not wrong.any()
        assert not far.any()
        assert not plain.has_strays
        assert plain.finding() == ""


def test_a_band_that_goes_the_plain_way_is_judged_beside_those_that_do_not(kernels):
    """Shares and places count groups that kernels took."""
    form, q = FORMATS["nvfp4"], nvfp4_quantization(static=False)
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(5)).bfloat16()
    matrix = form.matrix_parts((256, 256), q, weight.float().abs().max())
    parts = form.encode(weight.float(), q, matrix) | matrix
    held = Unclaimed(form, q)
    halves = [{**parts, **{s: parts[s][at : at + 128] for s in ("weight_packed", "weight_scale")}} for at in (0, 128)]
    theirs = Band(0, (128, 256), Quantization("dense", dtype="BF16"), {"weight": weight[:128]}, {})
    assert held.usual(kernels, Band(0, (128, 256), q, halves[0], {}), theirs)
    damaged = scaled(halves[1], 9 / 8)
    held.add(128, damaged, weight[128:].float(), form.decode(damaged, (128, 256), q))
    assert held.finding().startswith("1 of 4096 groups are further from the source than all others: [131, 0:16] by ")
