"""verify on drafts whose scales were searched: what a search can make passes, whatever a manifest says."""

import json

import pytest
import torch
from drafts import changed, failed, weight_file
from safetensors.torch import load_file

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.methods import METHODS
from mtpforge.planning import plan
from mtpforge.verifying import verify
from mtpforge.weights import compiling

SEARCHED = [m.name for m in METHODS.values() if m.is_searched and not m.needs_inputs]
W = "model.layers.3.mlp.experts.5.up_proj."


@pytest.fixture(scope="module")
def draft(tinyglm, tmp_path_factory):
    """Drafts for the INT4 target, by method."""

    def make(scales):
        source, target = open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(tinyglm("awq-int4")))
        folder = tmp_path_factory.mktemp(scales) / "draft"
        return build(
            plan(source, target, scales=scales), {"source": source, "target": target}, folder, check="off"
        ).path

    return {scales: make(scales) for scales in ("rtn", *SEARCHED)}


@pytest.fixture(params=["torch", "kernels"])
def judged(request, tinyglm, monkeypatch):
    if request.param == "kernels":
        monkeypatch.setattr(compiling, "WORTH_COMPILING", 0)

    def judge(folder):
        source, target = open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(tinyglm("awq-int4")))
        return verify(folder, target, source)

    return judge


def claims(folder, method):
    """A manifest with nothing to compare but the method, which may be a lie."""
    names = load_file(next(folder.glob("*.safetensors"))).keys()
    body = {"schema": 1, "mtpforge": "0", "plan": "", "source": {"id": "s"}, "target": None, "layer": 3}
    body |= {"n_experts": 16, "tensors": {}, "relative_error": {}, "scales": method}
    assert names
    (folder / "mtpforge.json").write_text(json.dumps(body))
    return folder


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", ["rtn", *SEARCHED])
def test_searched_drafts_pass_and_are_held_against_rtn(draft, judged, method):
    report = judged(draft[method])
    assert report.ok
    ours, rtn = report.facts["relative_error"], report.facts["rtn_relative_error"]
    plain = judged(draft["rtn"]).facts["relative_error"]
    if method == "rtn":
        assert not rtn
        assert not [c for c in report.checks if c.name == "scales"]
        return
    assert len(rtn) == 57
    if method == "mse":  # others count another error than the square
        assert all(ours[name] < rtn[name] for name in rtn)
    assert rtn == pytest.approx({name: plain[name] for name in rtn}, rel=1e-4)
    (check,) = [c for c in report.checks if c.name == "scales"]
    assert "57 weights" in check.detail


def test_clipped_weights_fail_where_the_manifest_says_rtn(draft, judged, tmp_path):
    copy = changed(draft["mse"], tmp_path / "bare", lambda t: t.update(extra=torch.zeros(1)))
    report = judged(claims(copy, "rtn"))
    assert "values" in failed(report)
    assert "within the rounding of its format" in next(c for c in report.checks if c.name == "values").detail


def shifted_zero(tensors):
    tensors[W + "weight_zero_point"] += 0x11111111


def other_expert(tensors):
    for suffix in ("weight_packed", "weight_scale", "weight_zero_point"):
        tensors[W + suffix] = tensors["model.layers.3.mlp.experts.6.up_proj." + suffix].clone()


def wider_scale(tensors):
    tensors[W + "weight_scale"] *= 1.25


def one_code(tensors):
    tensors[W + "weight_packed"][3, 2] ^= 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize("lie", [shifted_zero, other_expert, wider_scale, one_code])
@pytest.mark.parametrize("method", SEARCHED)
def test_a_manifest_that_lies_lets_no_garbage_pass(draft, judged, tmp_path, method, lie):
    report = judged(claims(changed(draft["rtn"], tmp_path / "lying", lie), method))
    detail = next(c for c in report.checks if c.name == "values").detail
    assert "values" in failed(report)
    assert "experts.5.up_proj" in detail


@pytest.mark.parametrize("method", SEARCHED)
def test_rtn_passes_as_a_search_that_found_nothing(draft, judged, tmp_path, method):
    copy = changed(draft["rtn"], tmp_path / "copy", lambda t: t.update(extra=torch.zeros(1)))
    report = judged(claims(copy, method))
    assert "values" not in failed(report)


def test_a_method_of_another_version_is_no_licence(draft, judged, tmp_path):
    assert "manifest" in failed(judged(claims(changed(draft["rtn"], tmp_path / "odd", one_code), "best")))


def unpacked(words):
    return ((words.unsqueeze(-1) >> torch.arange(0, 32, 4)) & 15).flatten(-2)


def packed(codes):
    words = (codes.long().view(len(codes), -1, 8) << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def taken_apart(tensors, tinyglm):
    """The source's weight over the stored scale, plus the zero point; the codes; the scale: [rows, groups, 32 or 1]."""
    files = sorted(tinyglm("bf16").glob("*.safetensors"))
    weight = next(t[W + "weight"] for t in map(load_file, files) if W + "weight" in t).float()
    scale = tensors[W + "weight_scale"].float().unsqueeze(-1)
    zero = unpacked(tensors[W + "weight_zero_point"].t()).t().unsqueeze(-1)
    return weight.view(*scale.shape[:2], 32) / scale + zero, unpacked(tensors[W + "weight_packed"]), zero


def test_nearest_codes_of_too_wide_a_scale_are_worse_than_rtn(draft, judged, tinyglm, tmp_path):
    """Every weight is within half of its scale: only the error of its group tells."""

    def coarse(tensors):
        exact, _, zero = taken_apart(tensors, tinyglm)
        tensors[W + "weight_packed"] = packed(((exact - zero) / 2 + zero).clamp(0, 15).round().flatten(1))
        tensors[W + "weight_scale"] *= 2

    report = judged(claims(changed(draft["rtn"], tmp_path / "coarse", coarse), "mse"))
    assert "values" in failed(report)
    assert "experts.5.up_proj" in next(c for c in report.checks if c.name == "values").detail


def test_a_code_that_is_not_the_nearest_is_found_in_a_group_better_than_rtn(draft, judged, tinyglm, tmp_path):
    """Weights near a tie take the other code, where rtn leaves a tenth more: their group stays better than by it."""

    def squares(tensors):
        exact, codes, _ = taken_apart(tensors, tinyglm)
        rest = (exact - codes.view_as(exact)) * tensors[W + "weight_scale"].float().unsqueeze(-1)
        return rest.square().sum(-1, keepdim=True)

    by_rtn = squares(load_file(weight_file(draft["rtn"])))

    def other_neighbour(tensors):
        exact, codes, _ = taken_apart(tensors, tinyglm)
        better = (squares(tensors) * 1.1 < by_rtn).expand_as(exact).flatten(1)
        rest = exact.flatten(1) - codes
        inner = (rest.abs() < 0.495) & (codes > 0) & (codes < 15) & better
        at = torch.where(inner, rest.abs(), 0).flatten().topk(16).indices
        assert inner.flatten()[at].all()
        codes.view(-1)[at] += rest.flatten()[at].sign().int()
        tensors[W + "weight_packed"] = packed(codes)

    report = judged(claims(changed(draft["mse"], tmp_path / "other", other_neighbour), "mse"))
    detail = next(c for c in report.checks if c.name == "values").detail
    assert "values" in failed(report)
    assert "experts.5.up_proj" in detail
