"""The heads that a target can have, and the lightest of them."""

from __future__ import annotations

import json

import pytest

import mtpforge
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.inspecting import inspect

# Sizes of GLM-5.2's layer in bytes: the censuses of tests/data, and bits a weight times weights.
BF16 = 19_905_841_664
NVFP4 = 6_014_312_960
INT4_G32 = 5_865_075_344


@pytest.fixture
def target(release_config, tmp_path):
    """A published config, as a folder."""

    def make(name):
        (tmp_path / "config.json").write_text(json.dumps(release_config(name)))
        return open_checkpoint(str(tmp_path))

    return make


def heads_of(checkpoint, **more):
    return {head["scheme"]: head for head in inspect(checkpoint, **more).facts["heads"]}


def test_target_that_leaves_the_layer_dense_can_have_a_lighter_one(target):
    found = heads_of(target("target-nvfp4-nvidia"))
    assert list(found) == ["bf16", "nvfp4", "lightest"]
    assert {name: head["told"] for name, head in found.items()} == {"bf16": False, "nvfp4": True, "lightest": True}
    assert (found["bf16"]["n_bytes"], found["nvfp4"]["n_bytes"]) == (BF16, NVFP4)
    assert found["lightest"]["n_bytes"] < NVFP4


def test_own_head_comes_first_and_none_twice(target):
    found = heads_of(target("target-awq-int4-ignore-to-77"))
    assert next(iter(found)) == "int4-g32-asym"
    assert found["int4-g32-asym"]["n_bytes"] == INT4_G32
    smallest = min(found.values(), key=lambda head: head["n_bytes"])
    assert smallest["scheme"] == "int4-g128-sym"  # what `lightest` is there
    assert "lightest" not in found


def test_target_of_which_no_draft_can_be_made_has_none(target):
    assert heads_of(target("target-w4afp8")) == {}


def test_other_engine_reads_the_drafts_own_block(target):
    found = heads_of(target("target-nvfp4-nvidia"), engine="sglang")
    assert not any(head["told"] for head in found.values())
    assert "fp8-block128" in found


@pytest.mark.parametrize(
    ("name", "experts", "attention"),
    [
        ("target-nvfp4-nvidia", "modelopt_nvfp4", "modelopt_nvfp4"),
        ("target-fp8", "fp8_block", "fp8_block"),
        ("target-bf16", "pack_quantized", "pack_quantized"),
        ("target-mxfp4-amd", "quark_int4", "quark_int4"),  # 4.125 bits a weight, MXFP4 has 4.25
    ],
)
def test_lightest_is_what_the_method_can_state(name, experts, attention, target, release_config):
    from mtpforge.engines import ENGINES
    from mtpforge.heads import lightest

    scheme = lightest(target(name), ENGINES["vllm"])
    assert scheme.of("mlp.experts.*.down_proj").quantization.format == experts
    assert scheme.of("self_attn.o_proj").quantization.format == attention
    assert scheme.of("mlp.gate").quantization.is_dense


def test_lightest_draft_is_built_and_fits(tinyglm, tmp_path):
    made = mtpforge.build(tinyglm("nvfp4"), tinyglm("bf16"), out=tmp_path / "draft", scheme="lightest", check="off")
    report = mtpforge.verify(made.path, tinyglm("nvfp4"), tinyglm("bf16"))
    assert report.ok
    assert made.manifest.body["scheme"]["name"] == "lightest"


def test_layer_on_its_own_has_no_lightest(tinyglm, tmp_path):
    with pytest.raises(MtpforgeError, match="there is no target"):
        mtpforge.extract(tinyglm("bf16"), out=tmp_path / "draft", scheme="lightest")
