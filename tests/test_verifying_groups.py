"""A scale off by an eighth in a draft that nobody vouches for is told; honest drafts of any maker are left in peace."""

from __future__ import annotations

import pytest
import torch
from drafts import changed, copy_without_manifest

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.planning import plan
from mtpforge.verifying import verify

P = "model.layers.3."


@pytest.fixture(scope="module")
def made(tinyglm, tmp_path_factory):
    """A draft by source, target and method, made once."""
    home, done = tmp_path_factory.mktemp("made"), {}

    def draft(source, target, scales="rtn"):
        key = f"{source}-{target}-{scales}"
        if key not in done:
            sides = {"source": open_checkpoint(str(tinyglm(source))), "target": open_checkpoint(str(tinyglm(target)))}
            sides["scales"] = open_checkpoint(str(tinyglm("nvfp4")))
            n = 12 if target.endswith("12experts") else 16
            decided = plan(
                sides["source"],
                sides["target"],
                input_scales=sides["scales"],
                scales=scales,
                kept=tuple(range(n)) if n < 16 else None,
            )
            build(decided, sides, home / key, check="off", workers=1)
            done[key] = home / key
        return done[key], sides_of(tinyglm, source, target)

    return draft


def sides_of(tinyglm, source, target):
    return open_checkpoint(str(tinyglm(target))), open_checkpoint(str(tinyglm(source)))


def groups(report):
    return {check.name: check for check in report.checks}.get("groups")


@pytest.mark.parametrize("factor", [9 / 8, 7 / 8])
@pytest.mark.parametrize(
    ("target", "module", "suffix"),
    [
        ("nvfp4", "mlp.experts.5.up_proj", "weight_scale"),
        ("awq-int4", "mlp.experts.5.up_proj", "weight_scale"),
        ("awq-int4", "self_attn.o_proj", "weight_scale"),
    ],
)
def test_one_scale_off_by_an_eighth_is_told(made, tmp_path, target, module, suffix, factor):
    draft, (served, source) = made("bf16", target)

    def damage(tensors):
        scale = tensors[f"{P}{module}.{suffix}"]
        wide = scale.float()
        largest = wide.where(wide <= 256, 0).argmax()  # E4M3 ends at 448
        place = divmod(int(largest), scale.shape[1])
        scale[place] = (scale[place].float() * factor).to(scale.dtype)

    report = verify(changed(draft, tmp_path / "draft", damage), served, source)
    found = {check.name: check for check in report.checks}
    if found["values"].verdict == "failed":  # clipped weights are beyond the bound already
        assert factor < 1 or target != "nvfp4"
        return
    assert found["groups"].verdict == "warning"
    assert found["groups"].detail.startswith(f"1 weights: {module}: 1 of ")
    assert "groups are further from the source than rounding leaves them" in found["groups"].detail
    assert report.ok  # told, and no more: another maker may have meant it


PAIRS = [(s, t) for s in ("bf16", "fp8", "nvfp4") for t in ("nvfp4", "awq-int4", "awq-int4-12experts", "int4-int8mix")]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_no_honest_draft_stands_out(made, tmp_path, source, target):
    draft, (served, origin) = made(source, target)
    copy_without_manifest(draft, tmp_path / "draft")
    report = verify(tmp_path / "draft", served, origin)
    assert {c.name: c.verdict for c in report.checks}["values"] == "passed"
    assert groups(report) is None


@pytest.mark.parametrize("scales", ["mse", "hqq"])
@pytest.mark.parametrize("target", ["awq-int4", "int4-int8mix"])
def test_no_searched_draft_stands_out(made, tmp_path, scales, target):
    draft, (served, origin) = made("bf16", target, scales)
    copy_without_manifest(draft, tmp_path / "draft")
    assert groups(verify(tmp_path / "draft", served, origin)) is None


def test_values_from_a_coarser_copy_of_the_model_stand_out_nowhere(made, tmp_path, tinyglm):
    """A draft of BF16 weights beside their FP8 copy: hardly a group is what rounding the copy leaves."""
    draft, (served, _) = made("bf16", "awq-int4")
    copy_without_manifest(draft, tmp_path / "draft")
    assert groups(verify(tmp_path / "draft", served, open_checkpoint(str(tinyglm("fp8"))))) is None


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

    assert groups(verify(changed(draft, tmp_path / "draft", fit), served, source)) is None
