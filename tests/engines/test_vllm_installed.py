"""The child process: what it is started with, what it may answer, how it may fail. No engine is needed here."""

from __future__ import annotations

import json
import os
import select
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open

from mtpforge import errors
from mtpforge.engines import child
from mtpforge.engines import installed as asking
from mtpforge.engines.vllm import installed
from mtpforge.errors import MtpforgeError
from mtpforge.tensors import Spec, TensorRef

REPORT = {
    "accepted": True,
    "complete": True,
    "errors": [],
    "notes": ["a note"],
    "defaulted": [],
    "facts": {
        "versions": {"vllm": "0.33.0", "torch": "2.13.0"},
        "class": "vllm.models.X",
        "tensors": 71,
        "parameters": {"total": 24, "loaded": 22},
    },
}


@pytest.fixture
def interpreter(tmp_path):
    """A program in the place of an engine's interpreter: `-m MODULE REQUEST REPORT` are its arguments."""

    def make(body: str) -> str:
        program = tmp_path / "python"
        program.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\n{body}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return str(program)

    return make


def answering(report, tmp_path):
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps(report))
    return f'echo "INFO noise {{" ; echo more noise >&2 ; cp {answer} "$4"'


def refusal(call):
    with pytest.raises(MtpforgeError) as caught:
        call()
    return caught.value


def test_complete_draft_passes_however_much_the_engine_prints(interpreter, tmp_path):
    python = interpreter(answering(REPORT, tmp_path))
    report = installed.check(tmp_path, {"model_type": "x"}, python=python)
    assert report.ok
    assert report.command == "validate"
    assert [(c.name, c.verdict, c.detail) for c in report.checks] == [
        ("engine loads the draft", "passed", "vLLM 0.33.0: vllm.models.X"),
        ("draft is complete", "passed", "71 tensors, 22 of 24 parameters loaded"),
    ]
    assert report.facts["notes"] == ["a note"]
    json.dumps(report.facts)


def test_refused_draft_fails_with_the_engines_words_and_a_command(interpreter, tmp_path):
    refused = REPORT | {"accepted": False, "complete": False, "errors": ["load_weights: KeyError: 'x'"], "facts": {}}
    report = installed.check(tmp_path, tmp_path, python=interpreter(answering(refused, tmp_path)))
    assert not report.ok
    (check,) = report.checks
    assert check.detail == "vLLM ? refuses it: load_weights: KeyError: 'x'"
    assert check.fix == "{anew}"


def test_loaded_but_incomplete_draft_fails_and_keeps_every_error(interpreter, tmp_path):
    found = [f"expert {n}: nothing loaded" for n in range(50)]
    report = installed.check(
        tmp_path,
        tmp_path,
        python=interpreter(answering(REPORT | {"complete": False, "errors": found}, tmp_path)),
    )
    assert not report.ok
    assert report.checks[0].verdict == "passed"
    assert [c.detail for c in report.checks[1:]] == [*found[:20], "and 30 more of this kind"]
    assert report.facts["errors"] == found


def test_request_says_how_the_draft_will_be_served(interpreter, tmp_path):
    kept = tmp_path / "kept.json"
    python = interpreter(f'cp "$3" {kept}; ' + answering(REPORT, tmp_path))
    installed.check(
        tmp_path,
        tmp_path,
        python=python,
        meta=False,
        tensor_parallel=4,
        expert_parallel=True,
        overrides={"num_nextn_predict_layers": 1},
        capability=120,
    )
    request = json.loads(kept.read_text())
    assert (request["target"], request["draft"], request["meta"]) == (str(tmp_path), str(tmp_path), False)
    assert (request["tensor_parallel"], request["expert_parallel"], request["capability"]) == (4, True, 120)
    assert request["overrides"] == {"num_nextn_predict_layers": 1}


def test_request_carries_what_the_table_says_of_the_targets_draft_class(interpreter, tmp_path):
    kept = tmp_path / "kept.json"
    python = interpreter(f'cp "$3" {kept}; ' + answering(REPORT, tmp_path))
    installed.check(tmp_path, {"model_type": "glm_moe_dsa"}, python=python)
    request = json.loads(kept.read_text())
    assert request["compared"]["q_lora_rank"] is None
    assert request["compared"]["scoring_func"] == "softmax"
    assert request["built"] == {"router_dtype": ["moe_router_dtype", "float32"]}


def test_engine_sees_one_folder_of_ours_and_no_gpu(interpreter, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    kept = tmp_path / "kept.txt"
    body = f'echo "$PYTHONPATH:$CUDA_VISIBLE_DEVICES:$2" > {kept}; '
    body += f'ls -d "${{PYTHONPATH%%:*}}"/$(echo $2 | tr . /)/check.py >> {kept}; '
    installed.check(tmp_path, tmp_path, python=interpreter(body + answering(REPORT, tmp_path)))
    first, found = kept.read_text().splitlines()
    assert first.endswith("::mtpforge.engines.vllm.loader")
    assert found.endswith("mtpforge/engines/vllm/loader/check.py")
    assert not first.startswith(str(Path(installed.__file__).parents[3]))


def test_loader_imports_nothing_of_mtpforge_beside_itself(tmp_path):
    name = child.module_of(installed.LOADER, tmp_path)
    code = (
        f"import sys, mtpforge, {name}.check, {name}.stand_in, {name}.configs, {name}.__main__\n"
        "print(mtpforge.__file__, [m for m in sys.modules if m.startswith('mtpforge.formats')])"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == f"{tmp_path}/mtpforge/__init__.py []\n"


def test_no_engine_here_says_how_to_name_one(monkeypatch, tmp_path):
    monkeypatch.setattr(child.importlib.util, "find_spec", lambda name: None)
    error = refusal(lambda: installed.check(tmp_path, tmp_path))
    assert error.code == errors.MACHINE
    assert str(error) == (
        f"error: no engine found to ask\ncause: vLLM is not installed beside {sys.executable}\n"
        " hint: name an interpreter in which vLLM is installed: `--engine-python PATH`"
    )


def test_absent_interpreter_is_named(tmp_path):
    error = refusal(lambda: installed.check(tmp_path, tmp_path, python=str(tmp_path / "no" / "python")))
    assert (error.code, error.where, error.why) == (
        errors.MACHINE,
        "--engine-python",
        f"no program {tmp_path / 'no' / 'python'}",
    )


@pytest.mark.parametrize("name", ["ls", "cat"])
def test_program_that_is_no_python_is_said_to_be_none(tmp_path, name):
    program = shutil.which(name)
    error = refusal(lambda: installed.check(tmp_path, tmp_path, python=program))
    assert (error.code, error.where) == (errors.MACHINE, "--engine-python")
    assert error.why == f"{program} is no Python interpreter"  # and nothing of files that are ours


def test_interpreter_without_the_engine_is_named(interpreter, tmp_path):
    python = interpreter("echo no module named vllm >&2; exit 2")
    error = refusal(lambda: installed.check(tmp_path, tmp_path, python=python))
    assert error.code == errors.MACHINE
    assert error.why == f"vLLM cannot be imported by {python}: no module named vllm"
    assert "--engine-python PATH" in error.fix


@pytest.mark.skipif(installed.is_installed(), reason="vLLM is installed here")
def test_this_interpreter_without_vllm_answers_the_same_way(tmp_path):
    error = refusal(lambda: installed.check(tmp_path, tmp_path, python=sys.executable))
    assert error.why == f"vLLM cannot be imported by {sys.executable}: no module named vllm"


def test_engine_that_dies_is_quoted(interpreter, tmp_path):
    python = interpreter("echo Illegal instruction >&2; exit 132")
    error = refusal(lambda: installed.check(tmp_path, tmp_path, python=python))
    assert (error.code, error.where, error.why) == (errors.MACHINE, python, "exit 132: Illegal instruction")


def test_engine_that_writes_no_report_is_no_verdict(interpreter, tmp_path):
    error = refusal(lambda: installed.check(tmp_path, tmp_path, python=interpreter("exit 0")))
    assert (error.what, error.code) == ("the engine's loader ended without a verdict", errors.MACHINE)


def test_engine_that_hangs_is_ended_with_what_it_started(interpreter, tmp_path, monkeypatch):
    """The time is up when the engine has started its own process, however long this machine takes for that."""
    told = tmp_path / "pid"
    os.mkfifo(told)
    started = []

    class Hanging(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            started.append(os.pidfd_open(int(told.read_text())))  # reading waits for the writer
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Hanging)
    python = interpreter(f"sleep 600 & echo $! > {told}; wait")
    error = refusal(lambda: installed.check(tmp_path, tmp_path, python=python, timeout_seconds=3))
    assert error.code == errors.MACHINE
    assert error.what == "the engine's loader did not finish within 3 s"
    ended, _, _ = select.select(started, [], [], 60)  # at once, unless it was left running
    os.close(started[0])
    assert ended == started


def test_config_alone_takes_its_side_file_along(interpreter, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text('{"model_type": "x"}')
    (target / "hf_quant_config.json").write_text('{"quantization": {}}')
    kept = tmp_path / "kept.txt"
    body = f'ls $(sed \'s/.*"target": "\\([^"]*\\)".*/\\1/\' "$3") > {kept}; '
    installed.check(tmp_path, target / "config.json", python=interpreter(body + answering(REPORT, tmp_path)))
    assert kept.read_text().split() == ["config.json", "hf_quant_config.json"]


@dataclass
class Remote:
    """What installed.py asks of a hub repository."""

    quantization: dict
    label: str = "org/name"
    location: str = "org/name"
    has_headers: bool = True

    config = {"model_type": "glm_moe_dsa"}  # noqa: RUF012
    names = frozenset({"a.qweight", "b.weight"})

    def locate(self, names):
        specs = {"a.qweight": Spec("I32", (4, 2)), "b.weight": Spec("BF16", (3,))}
        return {n: TensorRef(n, specs[n], f"shard-{n}", 100, 100 + specs[n].n_bytes) for n in sorted(names)}


def test_hub_target_of_a_method_that_reads_headers_is_laid_out_with_them(tmp_path):
    folder = asking.as_folder(Remote({"quant_method": "awq"}), tmp_path / "target", installed.LOADER.reads_headers)
    with safe_open(folder / "model.safetensors", "pt") as file:
        found = {n: (file.get_slice(n).get_dtype(), file.get_slice(n).get_shape()) for n in sorted(Remote.names)}
    assert found == {"a.qweight": ("I32", [4, 2]), "b.weight": ("BF16", [3])}
    config = json.loads((folder / "config.json").read_text())
    assert config == Remote.config | {"quantization_config": {"quant_method": "awq"}}


def test_hub_target_with_modelopts_side_file_keeps_it(tmp_path):
    block = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    folder = asking.as_folder(Remote(block), tmp_path / "target")
    assert json.loads((folder / "hf_quant_config.json").read_text()) == block
    assert json.loads((folder / "config.json").read_text()) == Remote.config


def test_hub_target_of_another_method_is_its_config_alone(tmp_path):
    folder = asking.as_folder(Remote({}), tmp_path / "target")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
