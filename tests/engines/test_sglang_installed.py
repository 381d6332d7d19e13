"""The real SGLang on good and broken drafts: `make test-engines` names its interpreter. The words are its own."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import Serving
from mtpforge.engines.sglang import installed

PYTHON = os.environ.get("MTPFORGE_TEST_SGLANG_PYTHON")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_SGLANG_PYTHON names no interpreter with SGLang"),
]
LAYER = "model.layers.3."


def ask(draft, target, **how):
    return installed.check(draft, target, python=PYTHON, **how)


@pytest.fixture
def copy(tinyglm, tmp_path):
    """A draft: the MTP layer of one layout with tensors and config fields changed."""

    def make(layout, change=lambda tensors: None, config=(), without=()):
        tensors = {}
        for file in sorted(tinyglm(layout).glob("*.safetensors")):
            tensors |= {n: t for n, t in load_file(file).items() if n.startswith(LAYER)}
        change(tensors)
        folder = tmp_path / "draft"
        folder.mkdir()
        save_file({n: t.clone() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
        stored = json.loads((tinyglm(layout) / "config.json").read_text()) | dict(config)
        (folder / "config.json").write_text(json.dumps({k: v for k, v in stored.items() if k not in without}))
        return folder

    return make


@pytest.mark.parametrize(
    ("layout", "n_tensors", "how"),
    [("bf16", 71, {"ranks": 2}), ("fp8", 129, {"meta": False}), ("bf16", 71, {"capability": 100})],
    ids=["bf16 on two ranks", "fp8 with values", "bf16 on Blackwell"],
)
def test_layer_of_a_layout_is_accepted_as_its_own_draft(copy, tinyglm, layout, n_tensors, how):
    report = ask(copy(layout), tinyglm(layout), **how)
    assert report.ok, report.facts["errors"]
    assert report.facts["tensors"] == n_tensors
    assert report.facts["class"].endswith("GlmMoeDsaForCausalLMNextN")


def test_whole_checkpoint_is_its_own_draft_by_the_command_that_serve_prints(tinyglm):
    report = installed.ask(tinyglm("bf16"), open_checkpoint(str(tinyglm("bf16"))), Serving(2, port=8001), PYTHON)
    assert report.ok, report.facts["errors"]
    assert any("tensors outside the MTP layer" in note for note in report.facts["notes"])


def drop(name):
    return lambda tensors: tensors.pop(LAYER + name)


def put(name, tensor):
    return lambda tensors: tensors.update({LAYER + name: tensor})


def rename(tensors):
    for name in list(tensors):
        tensors[name.replace(LAYER, "model.layers.4.")] = tensors.pop(name)


BROKEN = {
    "a missing expert": ("bf16", drop("mlp.experts.7.down_proj.weight"), "not loaded: experts 7"),
    "a missing scale": ("fp8", drop("mlp.experts.5.up_proj.weight_scale_inv"), "not loaded: experts 5 at"),
    "half of a fused matrix": ("bf16", drop("self_attn.q_a_proj.weight"), "fused_qkv_a_proj_with_mqa.weight"),
    "a missing norm": ("bf16", drop("enorm.weight"), "model.enorm.weight [128]: nothing loaded"),
    "one expert too many": ("bf16", put("mlp.experts.16.up_proj.weight", torch.ones(128, 128)), "experts.16.up_proj"),
    "another index": ("bf16", rename, "model.layers.4.enorm.weight: read and dropped without a word"),
    "a quantized eh_proj": (
        "bf16",
        put("eh_proj.weight_scale_inv", torch.ones(2, 1)),
        "eh_proj.weight_scale_inv: read",
    ),
    "BF16 in the place of FP8": (
        "fp8",
        put("self_attn.o_proj.weight", torch.ones(128, 128, dtype=torch.bfloat16)),
        "is bfloat16, model.decoder.self_attn.o_proj.weight is float8_e4m3fn",
    ),
}


@pytest.mark.parametrize(("layout", "change", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_draft_is_refused(copy, tinyglm, layout, change, words):
    report = ask(copy(layout, change), tinyglm(layout))
    assert not report.ok
    assert any(words in error for error in report.facts["errors"]), report.facts["errors"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("routed_scaling_factor", 1.0, "config routed_scaling_factor: draft has 1.0"),
        ("dtype", None, "the draft runs in float16, the target in bfloat16"),
        ("num_nextn_predict_layers", 0, "Only 1 nextn layer is supported"),
        ("num_experts", 12, "experts"),
    ],
)
def test_a_field_that_sglang_reads_from_the_draft(copy, tinyglm, field, value, words):
    without = ("dtype", "torch_dtype") if field == "dtype" else ()
    folder = copy("bf16", config={field: value}, without=without)
    errors = ask(folder, tinyglm("bf16")).facts["errors"]
    assert any(words in error for error in errors), errors


def test_words_that_sglangs_parser_does_not_know_are_refused(copy, tinyglm):
    (error,) = ask(copy("bf16"), tinyglm("bf16"), arguments=["--no-such-flag"]).facts["errors"]
    assert error.startswith("server arguments: SGLang's parser refuses")
