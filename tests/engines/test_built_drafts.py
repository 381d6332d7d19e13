"""Drafts as mtpforge builds them, through the loader of the real vLLM: every source beside every target."""

from __future__ import annotations

import itertools
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from mtpforge import scheme as schemes
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.engines.vllm import installed
from mtpforge.families import family_of
from mtpforge.planning import plan

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM"),
]
SOURCES = ("bf16", "fp8", "nvfp4", "int4-int8mix")
TARGETS = (*SOURCES, "awq-int4")


def accepted(source, target, folder):
    stored, served = open_checkpoint(str(source)), open_checkpoint(str(target))
    build(plan(stored, served), {"source": stored, "target": served}, folder, check="off")
    report = installed.check(folder, served, python=PYTHON)
    assert report.ok, report.facts["errors"]
    return report


@pytest.mark.parametrize(("source", "target"), [*itertools.product(SOURCES, TARGETS)])
def test_draft_from_every_source_is_accepted_beside_every_target(tinyglm, tmp_path, source, target):
    report = accepted(tinyglm(source), tinyglm(target), tmp_path / "draft")
    assert report.facts["tensors"] >= 71


@pytest.mark.parametrize("preset", ["mxfp4", "mxfp8"])
@pytest.mark.parametrize("source", ["bf16", "nvfp4"])
def test_microscaled_drafts_are_accepted_beside_targets_that_ask_for_them(tinyglm, tmp_path, source, preset):
    plain = open_checkpoint(str(tinyglm("bf16")))
    block = ENGINES["vllm"].restate(plain, family_of(plain.config), schemes.load(preset))
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text(json.dumps({**plain.config, "quantization_config": dict(block)}))
    accepted(tinyglm(source), target, tmp_path / "draft")


def test_mxfp8_is_accepted_beside_modelopt(tinyglm, tmp_path):
    config = json.loads((tinyglm("nvfp4") / "config.json").read_text())
    config["quantization_config"]["quant_algo"] = "MXFP8"
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    assert accepted(tinyglm("nvfp4"), target, tmp_path / "draft").facts["tensors"] == 119


@pytest.mark.parametrize(("ignored", "n_tensors"), [(None, 167), (["*indexer*"], 183)], ids=["experts", "linears too"])
def test_weight_only_nvfp4_is_accepted_without_input_scales(tinyglm, tmp_path, ignored, n_tensors):
    config = json.loads((tinyglm("nvfp4") / "config.json").read_text())
    block = config["quantization_config"]
    block["quant_algo"] = "W4A16_NVFP4"
    for group in block["config_groups"].values():
        group["input_activations"] = None
    if ignored is not None:
        block["ignore"] = ignored
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    assert accepted(tinyglm("nvfp4"), target, tmp_path / "draft").facts["tensors"] == n_tensors


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
ROUNDED = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"}
# 9 linears and 16 experts of 3 matrices in three parts each, or one; 14 tensors that are never quantized.
BY_INPUTS = {
    "awq, by its headers": (AWQ, (9 + 48) * 3 + 14),
    "gptq, by its headers": (GPTQ | {"dynamic": {"+:.*experts$": {"bits": 8}}}, 9 + 48 * 3 + 14),
    "auto-round": (ROUNDED | {"extra_config": {"experts$": {"bits": 16}}}, 9 * 3 + 48 + 14),
}


@pytest.mark.parametrize("kind", BY_INPUTS)
def test_draft_is_accepted_beside_targets_of_awq_gptq_and_autoround(tinyglm, tmp_path, kind):
    block, n_tensors = BY_INPUTS[kind]
    config = json.loads((tinyglm("bf16") / "config.json").read_text()) | {"quantization_config": block}
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    names = {
        "model.layers.2.self_attn.o_proj.qweight": torch.zeros(1, dtype=torch.int32),
        "lm_head.weight": torch.ones(1),
    }
    save_file(names, target / "model.safetensors")
    assert accepted(tinyglm("bf16"), target, tmp_path / "draft").facts["tensors"] == n_tensors
