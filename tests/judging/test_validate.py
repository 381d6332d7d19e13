"""`validate --inputs`: fidelity beside what verify and the engine say, whether there is an engine or not."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from drafts import changed
from reporting.pages import Read, wrong_numbers
from safetensors.torch import load_file, save_file

import mtpforge
from mtpforge.engines.child import LOADS
from mtpforge.engines.sglang import installed as sglang_installed
from mtpforge.engines.vllm import installed
from mtpforge.judging import validating
from mtpforge.report import Check, Report, plain


@pytest.fixture
def answered(monkeypatch):
    """An engine that says yes or no to whatever it is asked."""

    def answer(verdict="passed"):
        checks = (Check("engine loads the draft", verdict, "vLLM 0: as told"),)
        monkeypatch.setattr(installed, "check", lambda *_, **__: Report("validate", checks))

    return answer


@pytest.fixture
def asked(made, tinyglm, inputs):
    """The command line on a draft, its dense layer and inputs."""
    sides = ("--target", str(tinyglm("awq-int4")), "--reference", str(tinyglm("bf16")), "--inputs", str(inputs))
    return lambda draft=None: ("validate", str(draft or made("int4-g32-asym")), *sides)


def exchanged(tensors):
    """Gate and up of an expert: every file and shape stays right."""
    gate, up = (f"model.layers.3.mlp.experts.5.{part}_proj." for part in ("gate", "up"))
    for name in [name for name in tensors if name.startswith(gate)]:
        other = name.replace(gate, up)
        tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()


def without_numbers(inputs, folder):
    """Inputs whose header is right, and whose states are no numbers: found once they are read."""
    tensors = load_file(inputs)
    tensors["hidden_states"][-1] = float("nan")
    save_file(tensors, folder / "nan.safetensors", metadata={"format": "mtpforge-inputs-1"})
    return folder / "nan.safetensors"


def test_early_end_of_the_engine_leaves_fidelity_its_numbers(run, asked, made, tinyglm, inputs, monkeypatch, tmp_path):
    monkeypatch.setattr(installed, "is_installed", lambda: False)
    ran = run(*asked(), "--engine-python", shutil.which("true"), "--json", "--report", str(tmp_path / "p.html"))
    assert (ran.code, ran.document["exit_code"]) == (5, 5)
    assert ran.document["error"]["what"].startswith("the engine's loader ended")
    alone = mtpforge.fidelity(made("int4-g32-asym"), tinyglm("bf16"), target=tinyglm("awq-int4"), inputs=inputs)
    expected = json.loads(json.dumps(plain(alone)))
    assert {**ran.document["fidelity"], "drafts": None} == {**expected, "drafts": None}
    assert ran.document["fidelity"]["drafts"][0]["steps"] == expected["drafts"][0]["steps"]
    assert [check["verdict"] for check in ran.document["predictions"]["checks"]] == ["passed"] * 3
    page = (tmp_path / "p.html").read_text()
    assert wrong_numbers(page) == []
    assert Read(page).document["fidelity"]["drafts"][0]["steps"] == expected["drafts"][0]["steps"]
    assert "the engine&#39;s loader ended" in page or "the engine's loader ended" in page
    assert "Predictions beside the dense layer" in page


def test_all_three_are_shown_and_the_next_step_follows_from_all(run, asked, answered):
    answered()
    ran = run(*asked())
    assert (ran.code, ran.err.splitlines()[-1].split()[:3]) == (0, ["Next:", "mtpforge", "serve"])
    assert "vLLM 0: as told" in ran.out
    assert "no target loses more of a step's acceptance on these inputs than" in ran.out


def test_broken_module_is_a_no_whatever_the_engine_says(run, asked, answered, made, tmp_path, monkeypatch):
    broken = changed(made("int4-g32-asym"), tmp_path / "broken", exchanged)
    answered()
    ran = run(*asked(broken), "--json")
    assert ran.code == 1
    assert "failed" not in [check["verdict"] for check in ran.document["report"]["checks"]]
    assert "Next:" not in ran.err
    monkeypatch.undo()
    monkeypatch.setattr(installed, "is_installed", lambda: False)
    ran = run(*asked(broken), "--engine-python", shutil.which("true"), "-q")
    assert ran.code == 1  # a no comes before a missing engine
    assert "mlp.experts.5.gate_proj" in ran.err


def test_source_is_the_measure_where_none_is_named(run, made, tinyglm, inputs, answered):
    answered()
    sides = ("--target", str(tinyglm("awq-int4")), "--source", str(tinyglm("bf16")), "--inputs", str(inputs))
    ran = run("validate", str(made("int4-g32-asym")), *sides, "--json")
    assert ran.code == 0
    assert ran.document["fidelity"]["reference"].endswith("bf16")


def test_what_ends_fidelity_early_leaves_what_the_others_found(run, made, tinyglm, inputs, answered, tmp_path):
    answered()
    cut = without_numbers(inputs, tmp_path)
    sides = ("--target", str(tinyglm("awq-int4")), "--reference", str(tinyglm("bf16")), "--inputs", str(cut))
    ran = run("validate", str(made("int4-g32-asym")), *sides, "--json")
    assert (ran.code, ran.document["exit_code"]) == (3, 3)
    assert ran.document["engine"]["checks"][0]["verdict"] == "passed"
    assert ran.document["fidelity"] is None
    (check,) = ran.document["predictions"]["checks"]
    assert (check["name"], check["verdict"]) == ("predictions", "not checked")
    assert check["detail"].startswith(ran.document["error"]["what"])
    assert ran.err.startswith("error: ")


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("fault", ["six bytes", "cut", "width", "no layer"])
def test_inputs_and_reference_that_are_none_are_refused_at_once(
    run, made, tinyglm, inputs, answered, monkeypatch, tmp_path, engine, fault
):
    if engine:
        answered()
    else:
        monkeypatch.setattr(installed, "is_installed", lambda: False)
    given, raw = tmp_path / "given.safetensors", inputs.read_bytes()
    given.write_bytes({"six bytes": b"abcdef", "cut": raw[:-8]}.get(fault, raw))
    if fault == "width":
        tensors = load_file(inputs)
        tensors["hidden_states"] = tensors["hidden_states"][:, :64].contiguous()
        save_file(tensors, given, metadata={"format": "mtpforge-inputs-1"})
    dense = tinyglm("awq-int4" if fault == "no layer" else "bf16")
    ran = run(
        *("validate", str(made("int4-g32-asym")), "--target", str(tinyglm("awq-int4"))),
        *("--reference", str(dense), "--inputs", str(given)),
    )
    assert (ran.code, ran.out) == (3, "")
    if fault == "no layer":
        assert ran.err.startswith(f"error: {dense} holds no MTP layer\n")
        assert "`--reference zai-org/GLM-5.2`" in ran.err
        assert "--source" not in ran.err
    else:
        assert ran.err.startswith(f"error: the file holds no calibration inputs\nwhere: {given}")


@pytest.mark.parametrize(
    ("words", "code", "what", "hint"),
    [
        (("--reference", "x"), 2, "there are no inputs to compare the draft with `--reference` on", "mtpforge capture"),
        (("--inputs", "x"), 2, "there is no dense layer to compare the draft with on these inputs", "--reference CKPT"),
        (("--inputs", "x", "--source", "y"), 3, "there is no inputs file `x`", "mtpforge capture"),
    ],
)
def test_half_of_what_it_needs_is_refused_before_anything_is_opened(
    run, tmp_path, monkeypatch, words, code, what, hint
):
    monkeypatch.chdir(tmp_path)
    ran = run("validate", "no-draft", "--target", "no-target", *words)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(f"error: {what}\n")
    assert hint in ran.err


def test_python_keeps_what_was_found_and_says_what_could_not_be_asked(made, tinyglm, inputs, monkeypatch, tmp_path):
    monkeypatch.setattr(installed, "is_installed", lambda: False)
    broken = changed(made("int4-g32-asym"), tmp_path / "broken", exchanged)
    sides = {"target": tinyglm("awq-int4"), "reference": tinyglm("bf16"), "inputs": inputs}
    answer = mtpforge.validate(broken, **sides)
    assert not answer.ok
    told = {check.name: check for check in answer.checks}
    assert told["engine loads the draft"].verdict == "not checked"
    assert "--engine-python" in told["engine loads the draft"].fix
    assert answer.facts["fidelity"].drafts[0].steps
    cut = without_numbers(inputs, tmp_path)
    with pytest.raises(mtpforge.MtpforgeError) as caught:  # nothing said no
        mtpforge.validate(made("int4-g32-asym"), **sides | {"inputs": cut})
    assert caught.value.code == 5


@pytest.mark.parametrize("verdict", ["passed", "failed"])
def test_of_two_engines_the_one_that_is_there_is_asked(run, made, tinyglm, answered, verdict):
    answered(verdict)
    here = sys.executable
    sides = ("--target", str(tinyglm("bf16")), "--engine", "both", "--engine-python", here)
    ran = run("validate", str(made("bf16")), *sides, "--json")
    assert ran.code == (5 if verdict == "passed" else 1)
    told = {check["name"]: check for check in ran.document["engine"]["checks"]}
    assert told["engine loads the draft (vLLM)"]["verdict"] == verdict
    left = told["engine loads the draft (SGLang)"]
    assert (left["verdict"], left["detail"]) == (
        "not checked", f"SGLang cannot be imported by {here}: no module named sglang",
    )  # fmt: skip
    assert ran.document["error"]["what"] == "one of two engines gave no answer"
    assert ran.document["error"]["hint"].endswith(f"`--engine-python {here}:SGLANG/bin/python`")
    shown = run("validate", str(made("bf16")), *sides)
    assert "vLLM 0: as told" in shown.out
    assert "SGLANG/bin/python" in shown.err


def test_where_neither_engine_is_there_the_hint_asks_for_two(run, made, tinyglm):
    sides = ("--target", str(tinyglm("bf16")), "--engine", "both", "--engine-python", sys.executable)
    ran = run("validate", str(made("bf16")), *sides)
    assert (ran.code, "fits: " in ran.out) == (5, True)
    assert "`--engine-python VLLM/bin/python:SGLANG/bin/python`" in ran.err


def test_ranks_that_do_not_divide_are_answered_with_ranks_that_do(run, made, tinyglm, answered, monkeypatch):
    checks = (Check("engine loads the draft", "failed", "heads must be divisible", "{anew}"),)
    monkeypatch.setattr(installed, "check", lambda *_, **__: Report("validate", checks))
    ran = run("validate", str(made("int4-g32-asym")), "--target", str(tinyglm("awq-int4")), "--tp", "3")
    assert ran.code == 1
    assert {line for line in ran.err.splitlines() if "hint:" in line} == {" hint: `--tp 2`"}


def test_pass_is_left_out_for_the_check_that_failed(made, tinyglm, monkeypatch):
    checks = (Check("engine loads the draft", "passed", "x"), Check("draft is complete", "failed", "y"))
    monkeypatch.setattr(installed, "check", lambda *_, **__: Report("validate", checks))
    answer = mtpforge.validate(made("int4-g32-asym"), tinyglm("awq-int4"))
    (passed,) = (check for check in answer.checks if check.name == "forward pass")
    assert (passed.verdict, passed.detail) == (
        "not checked", "the loader takes the draft, but `draft is complete` failed",
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["engine", "fidelity"])
def test_whoever_stops_it_keeps_what_was_found(run, asked, answered, monkeypatch, stage):
    answered()

    def stopped(*_, **__):
        raise KeyboardInterrupt

    if stage == "engine":
        monkeypatch.setattr(installed, "check", stopped)
    else:
        monkeypatch.setattr(validating, "fidelity", stopped)
    ran = run(*asked(), "--json")
    assert ran.code == 130
    assert ran.document["report"]["checks"]
    assert ("engine" in ran.document) == (stage == "fidelity")
    assert "interrupted" in json.dumps(ran.document["error"])


def test_python_tells_what_the_engine_said_that_is_there(made, tinyglm, monkeypatch, tmp_path):
    monkeypatch.setattr(installed, "check", lambda *_, **__: Report("validate", (Check(LOADS, "passed", "yes"),)))
    monkeypatch.setattr(sglang_installed, "is_installed", lambda: False)
    draft = mtpforge.build(tinyglm("bf16"), tinyglm("bf16"), engine="both", out=tmp_path / "both", check="off").path
    answer = mtpforge.validate(draft, tinyglm("bf16"), engine="both", engine_python=shutil.which("true"))
    told = {check.name: check.verdict for check in answer.checks if check.name.startswith(LOADS)}
    assert told == {f"{LOADS} (vLLM)": "passed", f"{LOADS} (SGLang)": "not checked"}
