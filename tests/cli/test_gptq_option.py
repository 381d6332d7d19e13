"""`--scales gptq` as it is typed: from captured inputs to a verified draft, and where it is refused."""

from __future__ import annotations

import hashlib
import json

import pytest
from nextn.calibration import captured, write


@pytest.fixture
def sides(tinyglm):
    return "--source", tinyglm("bf16"), "--target", tinyglm("awq-int4")


@pytest.fixture
def inputs(tinyglm, in_folder):
    write(in_folder / "calib.safetensors", captured(tinyglm("bf16")))
    return "--inputs", "calib.safetensors"


@pytest.mark.slow
def test_from_captured_inputs_to_a_verified_draft(run, in_folder, sides, tinyglm):
    text = (tinyglm("bf16").parent / "eval.txt").read_text()[:4000]
    (in_folder / "text.txt").write_text(text)
    target = ("--target", tinyglm("awq-int4"))
    assert run("capture", *target, "--text", "text.txt", "--length", "128", "-o", "made.safetensors").code == 0
    ran = run("build", *sides, "--scales", "gptq", "--inputs", "made.safetensors", "-o", "draft", "--json")
    assert ran.code == 0
    checks = {check["name"]: check for check in ran.document["report"]["checks"]}
    assert checks["values"]["verdict"] == checks["outputs"]["verdict"] == "passed"
    kept = json.loads((in_folder / "draft" / "mtpforge.json").read_text())
    assert kept["scales"] == "gptq"
    assert kept["fitted_to"]["sha256"] == hashlib.sha256((in_folder / "made.safetensors").read_bytes()).hexdigest()
    assert 0 < kept["output_error"]["mlp.experts.0"] < kept["rtn_output_error"]["mlp.experts.0"]
    assert run("verify", "draft", *sides).code == 0


def test_the_plan_says_what_is_fitted(run, sides, inputs):
    ran = run("build", *sides, "--scales", "gptq", *inputs, "--dry-run", "--json")
    assert ran.code == 0
    rows = {(row["kind"], row["action"]) for row in ran.document["plan"]["facts"]["stored"] if row["wanted"] != "BF16"}
    assert {("routed experts", "encoded, gptq"), ("shared experts", "encoded, gptq"), ("attention", "encoded")} <= rows
    assert len(ran.document["plan"]["inputs"]) == 64
    shown = run("build", *sides, "--scales", "gptq", *inputs, "--dry-run")
    assert "codes   fitted to calib.safetensors   111 tokens in 2 sequences" in shown.out


def test_pruned_by_the_same_inputs_or_without_them(run, in_folder, tinyglm, inputs):
    pair = ("--target", tinyglm("awq-int4-12experts"), "--source", tinyglm("bf16"))
    for more, method in (((), "reap"), (("--prune-by", "bias"), "bias")):
        ran = run("build", *pair, "--scales", "gptq", *inputs, *more, "-o", method, "--json", "--check", "off")
        assert ran.code == 0
        body = json.loads((in_folder / method / "mtpforge.json").read_text())
        assert len(body["output_error"]) == 13
        assert body["kept_by"]["method"] == method
        assert (body["kept_by"]["inputs"] is None) == (method == "bias")
        assert body["fitted_to"]["tokens"] == 111


def test_without_inputs_it_says_how_to_get_some(run, sides):
    ran = run("build", *sides, "--scales", "gptq", "--dry-run")
    assert ran.code == 2
    assert ran.err.startswith("error: `gptq` needs calibration inputs\nwhere: option `--scales`")
    assert "hint: `mtpforge capture --target CKPT --text FILE -o FILE`, then `--inputs FILE`" in ran.err


def test_inputs_without_it_are_refused(run, sides, inputs, tinyglm):
    ran = run("build", *sides, *inputs, "--scales", "mse", "--dry-run")
    assert ran.code == 2
    assert "`--scales gptq` uses them too" in ran.err
    ran = run("extract", "--source", tinyglm("bf16"), "--out", "layer", "--scheme", "int4-g128-sym", *inputs)
    assert ran.code == 2
    assert ran.err.startswith("error: `--scales rtn` looks at no inputs\nwhere: option `--inputs`")


def test_inputs_of_another_model_are_refused_by_the_plan(run, in_folder, sides, tinyglm):
    ((ids, positions, hidden), *_) = captured(tinyglm("bf16"))
    write(in_folder / "narrow.safetensors", [(ids, positions, hidden[:, :64].contiguous())])
    ran = run("build", *sides, "--scales", "gptq", "--inputs", "narrow.safetensors", "--dry-run")
    assert ran.code == 3
    assert "error: the inputs were captured from another model" in ran.err


def test_a_layout_without_integers_is_refused(run, tinyglm, inputs):
    pair = ("--target", tinyglm("fp8"), "--source", tinyglm("bf16"))
    ran = run("build", *pair, "--scales", "gptq", *inputs, "--dry-run")
    assert ran.code == 2
    assert "error: `gptq` would find no code of this draft" in ran.err


def test_extract_takes_it_too(run, tinyglm, in_folder, inputs):
    command = ("extract", "--source", tinyglm("bf16"), "--out", "layer", "--scales", "gptq", "--check", "off", *inputs)
    assert run(*command).code == 2  # BF16, nothing to fit
    ran = run(*command, "--scheme", "int4-g128-sym", "--json")
    assert ran.code == 0
    assert {"scales", "outputs"} <= {check["name"] for check in ran.document["report"]["checks"]}
