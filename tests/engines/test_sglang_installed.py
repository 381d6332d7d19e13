"""The real SGLang on good and broken drafts: `make test-engines` names its interpreter. The words are its own."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from sglang_asked import PYTHON, in_sglang, verdicts

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import Serving
from mtpforge.engines.sglang import installed
from mtpforge.engines.sglang.loader.request import Request

pytestmark = [pytest.mark.engine, in_sglang]
LAYER = "model.layers.3."


@pytest.fixture
def copy(tinyglm, tmp_path):
    """A draft: the MTP layer of one layout with tensors and config fields changed."""

    def make(name, layout, change=lambda tensors: None, config=(), without=()):
        tensors = {}
        for file in sorted(tinyglm(layout).glob("*.safetensors")):
            tensors |= {n: t for n, t in load_file(file).items() if n.startswith(LAYER)}
        change(tensors)
        folder = tmp_path / name
        folder.mkdir()
        save_file({n: t.clone() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
        stored = json.loads((tinyglm(layout) / "config.json").read_text()) | dict(config)
        (folder / "config.json").write_text(json.dumps({k: v for k, v in stored.items() if k not in without}))
        return folder

    return make


def test_whole_checkpoint_is_its_own_draft_by_the_command_that_serve_prints(tinyglm):
    report = installed.ask(tinyglm("bf16"), open_checkpoint(str(tinyglm("bf16"))), Serving(2, port=8001), PYTHON)
    assert report.ok, report.facts["errors"]
    assert report.checks[0].detail.startswith("SGLang 0.5.23: sglang.srt.models.glm4_moe.GlmMoeDsaForCausalLMNextN")
    assert any("tensors outside the MTP layer" in note for note in report.facts["notes"])


ACCEPTED = {
    "bf16": (71, {}),
    "bf16 on two ranks": (71, {"tensor_parallel": 2}),
    "bf16, experts dealt out": (71, {"tensor_parallel": 2, "arguments": ["--ep-size", "2"]}),
    "bf16 on Blackwell": (71, {"capability": 100}),
    "fp8": (129, {}),
    "fp8 with values": (129, {"meta": False}),
}


def test_layer_of_a_layout_is_accepted_as_its_own_draft(copy, tinyglm):
    requests = {}
    for name, (_, how) in ACCEPTED.items():
        layout = name.partition(" ")[0].strip(",")
        requests[name] = Request(str(tinyglm(layout)), str(copy(name, layout)), **how)
    found = verdicts(requests)
    assert {name: found[name].get("errors", found[name]) for name in ACCEPTED} == {name: [] for name in ACCEPTED}
    assert [found[name]["facts"]["tensors"] for name in ACCEPTED] == [count for count, _ in ACCEPTED.values()]


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
FIELDS = {
    "routed_scaling_factor": (1.0, "config routed_scaling_factor: draft has 1.0"),
    "dtype": (None, "the draft runs in float16, the target in bfloat16"),
    "num_nextn_predict_layers": (0, "Only 1 nextn layer is supported"),
    "num_experts": (12, "e_score_correction_bias"),  # the stale key wins
}


def test_broken_draft_is_refused(copy, tinyglm):
    requests, words = {}, {}
    for name, (layout, change, words[name]) in BROKEN.items():
        requests[name] = Request(str(tinyglm(layout)), str(copy(name, layout, change)))
    for name, (value, words[name]) in FIELDS.items():
        without = ("dtype", "torch_dtype") if value is None else ()
        draft = copy(name, "bf16", config={name: value}, without=without)
        compared = {"routed_scaling_factor": 2.5}
        requests[name] = Request(str(tinyglm("bf16")), str(draft), compared=compared)
    name = "a flag of nobody's"
    requests[name] = Request(str(tinyglm("bf16")), str(tinyglm("bf16")), arguments=["--no-such-flag"])
    words[name] = "server arguments: SGLang's parser refuses"
    found = verdicts(requests)
    accepted = {name: found[name] for name in words if not any(words[name] in e for e in found[name].get("errors", ()))}
    assert accepted == {}
