"""The line that comes first: what a draft is, what its target asks for; and nothing is said of what is not there."""

from __future__ import annotations

import json

import pytest
from drafts import WEIGHTS, changed, reconfigured

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.cli import main
from mtpforge.planning import plan
from mtpforge.scheme import load
from mtpforge.verifying import verify
from mtpforge.weights import Reader

P = "model.layers.3."


@pytest.fixture(scope="module")
def drafts(tinyglm, tmp_path_factory):
    """The same layer for three targets: bf16, awq-int4, nvfp4."""
    home, source = tmp_path_factory.mktemp("drafts"), open_checkpoint(str(tinyglm("bf16")))
    for layout in ("bf16", "awq-int4", "nvfp4"):
        target = open_checkpoint(str(tinyglm(layout)))
        scales = open_checkpoint(str(tinyglm("nvfp4")))
        made = plan(source, target, input_scales=scales)
        build(made, {"source": source, "target": target, "scales": scales}, home / layout, check="off", workers=1)
    return home


def judged(draft, target, source=None, **how):
    opened = None if source is None else open_checkpoint(str(source))
    return verify(draft, open_checkpoint(str(target)), opened, **how)


def checks(report):
    return {check.name: (check.verdict, check.detail) for check in report.checks}


def test_a_draft_for_the_target_fits(drafts, tinyglm):
    target, source = tinyglm("awq-int4"), tinyglm("bf16")
    assert (
        judged(drafts / "awq-int4", target, source).summary == "fits: this draft is int4-g32-asym, as the target asks"
    )
    assert judged(drafts / "awq-int4", target).summary == (
        "fits: this draft is int4-g32-asym, as the target asks; its values were not compared with a source"
    )


@pytest.mark.parametrize(
    ("draft", "target", "held", "wanted"),
    [
        ("awq-int4", "bf16", "int4-g32-asym", "bf16"),
        ("bf16", "awq-int4", "bf16", "int4-g32-asym"),
        ("awq-int4", "nvfp4", "int4-g32-asym", "nvfp4"),
        ("nvfp4", "fp8", "nvfp4", "fp8-block128"),
    ],
)
def test_a_draft_of_another_scheme_is_told_by_both_names(drafts, tinyglm, draft, target, held, wanted):
    report = judged(drafts / draft, tinyglm(target))
    assert report.summary == f"does not fit: this draft is {held}; the target asks for {wanted}"
    assert not report.ok


def test_a_module_that_alone_differs_is_named(drafts, tinyglm, tmp_path):
    def one_dense(tensors):
        for part in ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point"):
            tensors.pop(f"{P}self_attn.o_proj.{part}")
        whole, name = open_checkpoint(str(tinyglm("bf16"))), f"{P}self_attn.o_proj.weight"
        tensors[name] = Reader(whole.read).tensor(whole.locate([name])[name])

    report = judged(changed(drafts / "awq-int4", tmp_path / "draft", one_dense), tinyglm("awq-int4"))
    assert report.summary == (
        "does not fit: this draft is BF16 in `self_attn.o_proj`, which is to be INT4 g32 asymmetric;"
        " the target asks for int4-g32-asym"
    )


def test_a_draft_of_the_right_scheme_that_fails_says_where(drafts, tinyglm, tmp_path):
    broken = reconfigured(drafts / "awq-int4", tmp_path / "draft", lambda config: config.pop("moe_router_dtype"))
    summary = judged(broken, tinyglm("awq-int4")).summary
    assert summary == "does not fit: this draft is int4-g32-asym, as the target asks, and fails at config"


def test_a_scheme_that_was_given_asks_in_the_target_s_place(drafts, tinyglm):
    report = judged(drafts / "bf16", tinyglm("awq-int4"), scheme=load("bf16"))
    assert report.summary.startswith("fits: this draft is bf16, as the scheme asks")


def test_headers_that_lie_leave_one_sentence(drafts, tinyglm, tmp_path):
    broken = reconfigured(drafts / "bf16", tmp_path / "draft", lambda config: config.pop("moe_router_dtype"))
    (broken / WEIGHTS).write_bytes(b"\x08" + bytes(7) + b"{}      ")
    assert judged(broken, tinyglm("bf16")).summary.startswith("does not fit: ")


def test_nothing_is_said_of_tensors_and_indexes_that_are_not_there(drafts, tinyglm, tmp_path):
    """No index lies beside one file; where no name is expected, none of a dtype passes."""
    found = checks(judged(drafts / "awq-int4", tinyglm("awq-int4")))
    assert not (drafts / "awq-int4" / "model.safetensors.index.json").exists()
    assert found["files"] == ("passed", "242 tensors, each in one place")

    def renamed(tensors):
        for name in list(tensors):
            tensors[name.replace(P, f"{P}mtp_block.")] = tensors.pop(name)

    found = checks(judged(changed(drafts / "awq-int4", tmp_path / "draft", renamed), tinyglm("awq-int4")))
    for name in ("dtypes", "shapes"):
        assert found[name] == ("not checked", "no tensor has a name expected by vLLM")
    assert found["tied scales"][0] == found["numbers"][0] == "not checked"
    assert not any("0 tensors" in detail for _, detail in found.values())


def test_a_dense_draft_is_not_called_quantized_because_its_target_is(drafts, tinyglm):
    found = checks(judged(drafts / "bf16", tinyglm("awq-int4")))
    assert found["quantization block"] == ("passed", "none, the draft is dense")


def test_a_dense_draft_with_a_block_is_warned_of(drafts, tinyglm, tmp_path):
    """Its presence turns the engine's own check for missing weights off."""
    block = json.loads((tinyglm("awq-int4") / "config.json").read_text())["quantization_config"]
    draft = reconfigured(drafts / "bf16", tmp_path / "draft", lambda config: config.update(quantization_config=block))
    verdict, detail = checks(judged(draft, tinyglm("bf16")))["quantization block"]
    assert verdict == "warning"
    assert detail.startswith("the draft is dense and has a quantization block")


def test_a_quantized_draft_without_a_block_is_warned_of(drafts, tinyglm, tmp_path):
    draft = reconfigured(drafts / "awq-int4", tmp_path / "draft", lambda config: config.pop("quantization_config"))
    verdict, detail = checks(judged(draft, tinyglm("awq-int4")))["quantization block"]
    assert verdict == "warning"
    assert detail.startswith("the draft is quantized and its config has no quantization block")


def test_it_is_the_first_line_of_verify(drafts, tinyglm, capfd):
    assert main(["verify", str(drafts / "awq-int4"), "--target", str(tinyglm("bf16"))]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == ["does not fit: this draft is int4-g32-asym; the target asks for bf16", ""]
