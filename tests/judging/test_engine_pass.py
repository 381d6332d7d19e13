"""`validate` on a machine with a GPU, an engine's pass told by the tests: what is asked, compared and said of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtpforge
from mtpforge import errors
from mtpforge.checkpoint import open_checkpoint
from mtpforge.drafting.devices import Gpu
from mtpforge.engines import child
from mtpforge.engines.vllm import installed
from mtpforge.errors import MtpforgeError
from mtpforge.judging import engine_pass
from mtpforge.report import Check, Report

HOPPER = (Gpu("NVIDIA H100", "9.0", 80 << 30, "580", 1980, None),)
FACTS = {"versions": {"vllm": "0.33.0"}, "device": "NVIDIA H100, sm_90", "class": "vllm.X", "processed": {"Marlin": 3}}
LOADS = Report("validate", (Check("engine loads the draft", "passed", "vLLM 0: as told"),), facts={"tensors": 1})


def report(**more):
    return {"accepted": True, "complete": True, "errors": [], "notes": [], "defaulted": [], "facts": dict(FACTS)} | more


@pytest.fixture
def validated(made, tinyglm, run, monkeypatch):
    """The command on a draft; the engine's pass puts out what our own does, changed by `change`, or ends by `said`."""
    monkeypatch.setattr(engine_pass, "gpus", lambda: HOPPER)
    monkeypatch.setattr(installed, "check", lambda *_, **__: LOADS)
    draft = made("bf16")

    def ask(change=lambda out: out, said=None, engine="vllm"):
        def pass_of_the_engine(_loader, _python, request, _home, _seconds, module, *, on_gpu):
            assert (module, on_gpu, request.meta, Path(request.draft)) == (".forward", True, False, draft)
            given = engine_pass.Given(**load_file(request.inputs))
            assert given.embeddings.dtype == given.states.dtype == torch.bfloat16
            if isinstance(said, MtpforgeError):
                raise said
            if said is None:
                save_file(change(engine_pass.computed(open_checkpoint(draft), given)), request.outputs)
            return said or report()

        monkeypatch.setattr(child, "ask", pass_of_the_engine)
        monkeypatch.setattr(child, "interpreter", lambda _loader, _python: "python")
        ran = run("validate", str(draft), "--target", str(tinyglm("bf16")), "--engine", engine, "--json")
        (check,) = [check for check in ran.document["engine"]["checks"] if check["name"] == "forward pass"]
        return ran, check

    return ask


def scaled(factor):
    return lambda out: {name: tensor * factor for name, tensor in out.items()}


def test_pass_that_agrees_is_told_with_device_and_what_was_left_out(validated):
    ran, check = validated(scaled(1.015625))
    assert (ran.code, check["verdict"]) == (0, "passed")
    assert check["detail"] == (
        "vLLM 0.33.0 on NVIDIA H100, sm_90, 64 random rows, attention left out: router and experts off by 1.6 %, "
        "states off by 1.6 %"
    )
    told = ran.document["engine"]["facts"]["forward"]
    assert told["off"] == {"mlp": pytest.approx(1 / 64, rel=1e-5), "states": pytest.approx(1 / 64, rel=1e-5)}
    assert (told["processed"], told["rows"]) == ({"Marlin": 3}, 64)


@pytest.mark.parametrize(
    "change",
    [
        scaled(2.0),
        lambda out: out | {"mlp": out["mlp"].flip(-1)},
        lambda out: out | {"states": out["states"].roll(1, 0)},
    ],
    ids=["twice as large", "experts turned round", "states of other rows"],
)
def test_pass_that_computes_something_else_is_a_no(validated, change):
    ran, check = validated(change)
    assert (ran.code, check["verdict"]) == (1, "failed")
    assert "the engine computes another layer" in check["detail"]
    assert "Next:" not in ran.err


def test_pass_that_puts_out_no_numbers_is_a_no(validated):
    ran, check = validated(scaled(float("nan")))
    assert (ran.code, check["verdict"]) == (1, "failed")
    assert "it puts out what is no number" in check["detail"]
    assert not re.search(r": -?(NaN|Infinity)", ran.out)


def test_few_rows_that_were_routed_otherwise_are_no_other_layer(validated):
    def some(out):
        return {name: torch.cat((-tensor[:20], tensor[20:])) for name, tensor in out.items()}

    assert validated(some)[1]["verdict"] == "passed"


def test_engine_that_does_not_come_through_is_quoted_and_no_verdict_on_the_draft(validated):
    words = "loading onto the device: RuntimeError: no kernel image (csrc.cu:1)"
    ran, check = validated(said=report(accepted=False, errors=[words]))
    assert (ran.code, check["verdict"]) == (0, "warning")
    assert check["detail"] == f"vLLM 0.33.0 on NVIDIA H100, sm_90 does not come through it: {words}"
    assert ran.document["engine"]["facts"]["forward"]["errors"] == [words]


def test_engine_that_sees_no_device_says_so(validated):
    ended = MtpforgeError("no engine found to ask", why="it sees no CUDA device", fix="`x`", code=errors.MACHINE)
    ran, check = validated(said=ended)
    assert (ran.code, check["verdict"]) == (0, "not checked")
    assert check["detail"] == "no engine found to ask: it sees no CUDA device"


@pytest.mark.parametrize(("number", "verdict"), [(1.0, "passed"), (float("inf"), "failed")])
def test_layer_that_is_not_computed_here_is_run_and_not_compared(made, tmp_path, number, verdict):
    other = shutil.copytree(made("bf16"), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config |= {"model_type": "deepseek_v32", "architectures": ["DeepseekV32ForCausalLM"]}
    (other / "config.json").write_text(json.dumps(config))
    given = engine_pass.rows(open_checkpoint(str(other)), 3)
    save_file({"states": torch.full((3, 128), number)}, tmp_path / "outputs.safetensors")
    answer = engine_pass.judged(open_checkpoint(other), given, report(), tmp_path / "outputs.safetensors", 1)
    assert answer.checks[0].verdict == verdict
    words = {"passed": "not held against anything: layers of ", "failed": "it puts out what is no number"}
    assert words[verdict] in answer.checks[0].detail


def test_engine_is_told_of_the_target_what_the_command_tells_it(tinyglm, tmp_path, monkeypatch):
    source, target = tinyglm("bf16"), tinyglm("bf16")
    draft = mtpforge.build(target, source, scheme="int4-g32-asym", out=tmp_path / "draft", check="off").path
    asked = []

    def pass_of_the_engine(_loader, _python, request, *_, **__):
        asked.append(request.overrides)
        raise MtpforgeError("enough", code=errors.MACHINE)

    monkeypatch.setattr(engine_pass, "gpus", lambda: HOPPER)
    monkeypatch.setattr(child, "ask", pass_of_the_engine)
    monkeypatch.setattr(child, "interpreter", lambda _loader, python: python)
    engine_pass.engine_pass(draft, open_checkpoint(str(target)), "vllm", installed.Serving(), None, 1)
    words = mtpforge.serve_command(draft, target)
    assert asked == [json.loads(words[words.index("--hf-overrides") + 1])]


def test_other_engine_s_pass_is_not_known(made, tinyglm, monkeypatch):
    monkeypatch.setattr(engine_pass, "gpus", lambda: HOPPER)
    target = open_checkpoint(str(tinyglm("bf16")))
    (check,) = engine_pass.engine_pass(made("bf16"), target, "sglang", installed.Serving(), None, 1).checks
    assert (check.verdict, check.detail) == ("not checked", "SGLang is not run by mtpforge; its loader was asked")


def test_of_both_engines_the_one_is_run_by_its_own_interpreter(made, tinyglm, monkeypatch):
    monkeypatch.setattr(engine_pass, "gpus", lambda: HOPPER)
    asked = []

    def pass_of_the_engine(loader, python, *_, **__):
        asked.append((loader.shown, python))
        raise MtpforgeError("enough", code=errors.MACHINE)

    monkeypatch.setattr(child, "ask", pass_of_the_engine)
    monkeypatch.setattr(child, "interpreter", lambda _loader, python: python)
    target = open_checkpoint(str(tinyglm("bf16")))
    for pythons in ("a:b", "c"):
        engine_pass.engine_pass(made("bf16"), target, "both", installed.Serving(), pythons, 1)
    assert asked == [("vLLM", "a"), ("vLLM", "c")]


def test_machine_without_a_gpu_says_that_nothing_was_run(validated, monkeypatch):
    monkeypatch.setattr(engine_pass, "gpus", lambda: "no `nvidia-smi` on PATH")
    ran, check = validated()
    assert (ran.code, check["verdict"]) == (0, "not checked")
    assert check["detail"] == "there is no GPU to run it on: no `nvidia-smi` on PATH"


def test_draft_that_the_loader_refuses_is_not_run(validated, monkeypatch):
    refused = Report("validate", (Check("engine loads the draft", "failed", "KeyError"),))
    monkeypatch.setattr(installed, "check", lambda *_, **__: refused)
    ran, check = validated()
    assert (ran.code, check["verdict"], check["detail"]) == (1, "not checked", "the loader does not take the draft")


def test_python_says_the_same(validated, made, tinyglm):
    validated(scaled(2.0))
    answer = mtpforge.validate(made("bf16"), tinyglm("bf16"))
    assert answer.checks[-1].verdict == "failed"
    assert answer.facts["loader"]["forward"]["off"]["mlp"] == pytest.approx(1.0, rel=1e-5)


def test_engine_is_shown_the_devices_in_a_pass_alone(tmp_path, monkeypatch, tinyglm):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    python, kept = tmp_path / "python", tmp_path / "kept.txt"
    python.write_text(f'#!/bin/sh\necho "$2 $CUDA_VISIBLE_DEVICES" > {kept}\necho \'{json.dumps(report())}\' > "$4"\n')
    python.chmod(0o755)
    target = open_checkpoint(str(tinyglm("bf16")))
    said = installed.forward(tmp_path, target, installed.Serving(), str(python), tmp_path / "in", tmp_path / "out")
    assert said == report(facts=FACTS | {"engine": "vLLM 0.33.0"})
    assert kept.read_text() == "mtpforge.engines.vllm.loader.forward 0\n"


def test_interpreter_without_a_device_is_told_apart(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    module = child.module_of(installed.LOADER, home) + ".forward"
    (home / "vllm.py").write_text("__version__ = '0'")
    (home / "request.json").write_text(json.dumps({"target": "x", "draft": "y"}))
    done = subprocess.run(
        [os.sys.executable, "-m", module, home / "request.json", home / "report.json"],
        env=os.environ | {"PYTHONPATH": str(home), "CUDA_VISIBLE_DEVICES": ""},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "of this interpreter sees no CUDA device" in done.stderr
