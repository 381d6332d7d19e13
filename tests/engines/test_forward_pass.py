"""One pass of a draft by vLLM's own classes for NVIDIA, beside the layer as it is computed here."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import child
from mtpforge.engines.vllm import installed
from mtpforge.engines.vllm.loader.request import Request
from mtpforge.engines.vllm.serving import overrides
from mtpforge.judging import engine_pass
from mtpforge.planning import plan

# The interpreter itself: conftest puts before it what forks a process that has imported vLLM for the loader.
PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON_ITSELF")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM"),
]
MOST_OFF = 0.02  # BF16 has 8 bits of fraction, and a dozen products follow each other


@pytest.fixture(scope="module")
def dense(tinyglm, tmp_path_factory):
    """The tiny model's own layer, in BF16."""
    source = open_checkpoint(str(tinyglm("bf16")))
    folder = tmp_path_factory.mktemp("dense") / "draft"
    build(plan(source, source), {"source": source, "target": source}, folder, check="off")
    return folder


def passed_through(draft: Path, target: Path, home: Path, told=None):
    """What vLLM says of one pass, what it was given, and where what it put out lies."""
    given = engine_pass.rows(open_checkpoint(draft), 16)
    inputs, outputs = home / "inputs.safetensors", home / "outputs.safetensors"
    save_file({field.name: getattr(given, field.name) for field in dataclasses.fields(given)}, inputs)
    request = Request(
        str(target), str(draft), meta=False, overrides=told or {}, inputs=str(inputs), outputs=str(outputs)
    )
    (home / "request.json").write_text(json.dumps(dataclasses.asdict(request)))
    child.module_of(installed.LOADER, home)
    triton = Path(PYTHON).parents[1] / "triton"
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("vllm_without_gpu.py"), home / "request.json", home / "report.json"],
        env=os.environ | {"PYTHONPATH": f"{home}{os.pathsep}{triton}", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return given, json.loads((home / "report.json").read_text()), outputs


def test_layer_is_computed_here_as_vllm_computes_it(dense, tinyglm, tmp_path):
    given, said, outputs = passed_through(dense, tinyglm("bf16"), tmp_path)
    assert said["accepted"], said["errors"]
    assert said["facts"]["class"] == "vllm.models.deepseek_v32.nvidia.mtp.DeepseekV32MTP"
    assert said["facts"]["processed"]["UnquantizedFusedMoEMethod"] == 1
    report = engine_pass.judged(open_checkpoint(dense), given, said, outputs, 1)
    assert report.ok
    off = report.facts["forward"]["off"]
    assert off.keys() == {"mlp", "states"}
    assert 0 < max(off.values()) < MOST_OFF


@pytest.mark.parametrize("wrong", ["gate and up exchanged", "eh_proj turned round"])
def test_a_layer_that_is_computed_otherwise_is_told(dense, tinyglm, tmp_path, wrong):
    other = tmp_path / "other"
    other.mkdir()
    for file in dense.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    for file in other.glob("*.safetensors"):
        tensors = load_file(file)
        if wrong == "gate and up exchanged":
            turned = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
            tensors = {
                ".".join(turned.get(word, word) for word in name.split(".")): tensor for name, tensor in tensors.items()
            }
        else:
            for name in [name for name in tensors if name.endswith("eh_proj.weight")]:
                tensors[name] = torch.cat(tensors[name].chunk(2, 1)[::-1], 1)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    given, said, outputs = passed_through(other, tinyglm("bf16"), tmp_path)
    report = engine_pass.judged(open_checkpoint(dense), given, said, outputs, 1)
    (check,) = report.checks
    assert check.verdict == "failed"
    assert "the engine computes another layer" in check.detail


def test_nvfp4_stops_over_the_draft_s_head_unless_the_command_excludes_it(tinyglm, tmp_path):
    """Weights that vLLM processes for its kernels: experts of NVFP4, whose activations it rounds to four bits too."""
    source, target = (open_checkpoint(str(tinyglm(name))) for name in ("bf16", "nvfp4"))
    draft = tmp_path / "draft"
    build(plan(source, target), {"source": source, "target": target}, draft, check="off")
    for name in ("bare", "told"):
        (tmp_path / name).mkdir()
    _, said, _ = passed_through(draft, tinyglm("nvfp4"), tmp_path / "bare")
    assert not said["accepted"]
    assert "NVFP4 weight_scale for layer 'parallel_lm_head' was never loaded" in said["errors"][0]
    given, said, outputs = passed_through(draft, tinyglm("nvfp4"), tmp_path / "told", overrides(target))
    assert said["accepted"], said["errors"]
    assert said["facts"]["processed"]["ModelOptNvFp4FusedMoE"] == 1
    off = engine_pass.judged(open_checkpoint(draft), given, said, outputs, 1).facts["forward"]["off"]
    assert all(0.05 < value < 0.25 for value in off.values()), off
