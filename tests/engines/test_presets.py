"""Every preset through the engines' own loaders, beside a target that asks for it, each from another source format."""

from __future__ import annotations

import os

import pytest
from matrix import sources
from matrix.engine_rules import target_of
from matrix.test_what_cannot_be_made import ENGINES_LACK
from matrix.tiny_layer import config
from sglang_asked import in_sglang, verdicts

from mtpforge import scheme as schemes
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines.sglang.loader.request import Request
from mtpforge.engines.sglang.serving import least_capability
from mtpforge.engines.vllm import installed
from mtpforge.planning import plan

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
in_vllm = pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM")
pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("presets")]
SOURCES = {
    "awq-int4-g128": "GPTQ of 3 bits",
    "bf16": "INT4 of ModelOpt",
    "fp8-block128": "MXFP8",
    "gptq-int4-g128": "AWQ",
    "int4-g128-sym": "FP8 of Quark",
    "int4-g32-asym": "GPTQ in planes of 5 bits",
    "int8-channel": "W4AFP8",
    "mxfp4": "NVFP4 of compressed-tensors",
    "mxfp8": "MLX of 6 bits",
    "nvfp4": "NVFP4 of ModelOpt",
    "nvfp4-w4a16": "INT8 in bytes, asymmetric",
    "w4afp8": "INT5 of compressed-tensors",
}


def of(engine):
    return [name for name in schemes.names() if (name, engine) not in ENGINES_LACK]


@pytest.fixture
def made(tinyglm, tmp_path):
    """preset, engine -> the draft's folder and the target."""

    def make(preset, engine):
        home, scheme = tmp_path / preset, schemes.load(preset)
        home.mkdir()
        stored = sources.stored(sources.SOURCES[SOURCES[preset]], home / "source", tinyglm("bf16"))
        source, target = open_checkpoint(str(stored.path)), target_of(scheme, config(tinyglm("bf16")), home / "target")
        origins = {"source": source, "target": target}
        decided = plan(source, target, engine=engine, scheme=scheme)
        return build(decided, origins, home / "draft", check="off").path, target

    return make


@in_vllm
@pytest.mark.parametrize("preset", of("vllm"))
def test_vllm_takes_the_preset(made, preset):
    draft, target = made(preset, "vllm")
    report = installed.check(draft, target, python=PYTHON)
    assert report.ok, report.facts["errors"]


@in_sglang
def test_sglang_takes_the_presets(made):
    folders = {preset: made(preset, "sglang") for preset in of("sglang")}
    least = {preset: least_capability(schemes.load(preset)) for preset in folders}
    asked = {
        preset: Request(target.location, str(draft), capability=least[preset])
        for preset, (draft, target) in folders.items()
    }
    assert {preset: found.get("errors", found) for preset, found in verdicts(asked).items()} == {p: [] for p in folders}
