"""The real vLLM on good and broken drafts: `make test-engines` names its interpreter.

What vLLM answers was first seen with the loader as it is published; the words in these tests are its own.
"""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtpforge.engines.vllm import installed

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM"),
]
LAYER = "model.layers.3."
ROUTER = {"moe_router_dtype": "float32"}


def ask(draft, target, **how):
    return installed.check(draft, target, python=PYTHON, **how)


@pytest.fixture
def copy(tinyglm, tmp_path):
    """A draft: the MTP layer of one layout with tensors and config fields changed."""

    def make(layout, change=lambda tensors: None, config=(), name="draft"):
        tensors = {}
        for file in sorted(tinyglm(layout).glob("*.safetensors")):
            tensors |= {n: t for n, t in load_file(file).items() if n.startswith(LAYER)}
        before = dict(tensors)
        change(tensors)
        folder = tmp_path / name
        folder.mkdir()
        save_file({n: t.clone() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
        stored = json.loads((tinyglm(layout) / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(stored | dict(config)))
        return folder, before, tensors

    return make


@pytest.mark.parametrize(
    ("layout", "n_tensors", "how"),
    [
        ("bf16", 71, {}),
        ("fp8", 129, {"meta": False}),
        ("nvfp4", 215, {"capability": 100}),
        ("nvfp4", 215, {"tensor_parallel": 2, "expert_parallel": True}),
        ("int4-int8mix", 183, {}),
    ],
    ids=["bf16", "fp8 with values", "nvfp4 on Blackwell", "nvfp4 on two ranks", "int8"],
)
def test_layer_of_a_layout_is_accepted_as_its_own_draft(copy, tinyglm, layout, n_tensors, how):
    folder, _, _ = copy(layout, config=ROUTER)
    report = ask(folder, tinyglm(layout), **how)
    assert report.ok, report.facts["errors"]
    assert report.facts["tensors"] == n_tensors
    assert report.facts["class"].startswith("vllm.models.")
    assert report.facts["versions"]["vllm"]


def test_whole_checkpoint_beside_its_config_alone_is_accepted(tinyglm):
    report = ask(tinyglm("bf16"), tinyglm("bf16") / "config.json")
    assert report.ok, report.facts["errors"]
    assert any(note.startswith("148 tensors outside the MTP layer") for note in report.facts["notes"])


def test_checkpoint_without_router_dtype_is_refused_for_that_alone(tinyglm):
    report = ask(tinyglm("nvfp4"), tinyglm("nvfp4"))
    (error,) = report.facts["errors"]
    assert 'the draft\'s config.json lacks "moe_router_dtype": "float32"' in error
    assert [check.verdict for check in report.checks] == ["passed", "failed"]


def test_dense_experts_are_refused_where_the_target_asks_for_int4(tinyglm):
    report = ask(tinyglm("bf16"), tinyglm("awq-int4"))
    assert "KeyError: 'model.layers.3.mtp_block.mlp.experts" in report.checks[0].detail
    assert report.checks[0].verdict == "failed"


def drop(name):
    return lambda tensors: tensors.pop(LAYER + name)


def put(name, tensor):
    return lambda tensors: tensors.update({LAYER + name: tensor})


def widen_scale(tensors):
    name = LAYER + "mlp.experts.0.up_proj.weight_scale"
    tensors[name] = tensors[name].float()


def cut_in_half(tensors):
    name = LAYER + "mlp.experts.0.up_proj.weight"
    tensors[name] = tensors[name][:, :16].contiguous()


BROKEN = {
    "a missing expert": ("bf16", drop("mlp.experts.7.down_proj.weight"), "not loaded: experts 7"),
    "a missing scale": ("nvfp4", drop("mlp.experts.5.up_proj.weight_scale"), "not loaded: experts 5 at"),
    "half of wk": ("fp8", drop("self_attn.indexer.wk.weight_scale_inv"), "still waits for the other half"),
    "a missing norm": ("bf16", drop("enorm.weight"), "weights were not initialized"),
    "one expert too many": ("bf16", put("mlp.experts.16.up_proj.weight", torch.ones(128, 128)), "experts.16"),
    "an unknown tensor": ("bf16", put("mlp.experts.0.up_proj.bias", torch.zeros(4)), "KeyError"),
    "a scale of another dtype": ("nvfp4", widen_scale, "is float32, model.layers.3.mtp_block"),
    "a weight cut in half": ("bf16", cut_in_half, "not loaded: experts 0 at"),
}


@pytest.mark.parametrize(("layout", "change", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_draft_is_refused(copy, tinyglm, layout, change, words):
    folder, before, after = copy(layout, change, ROUTER)
    assert {n: (t.dtype, t.shape) for n, t in before.items()} != {n: (t.dtype, t.shape) for n, t in after.items()}
    report = ask(folder, tinyglm(layout))
    assert not report.ok
    assert any(words in error for error in report.facts["errors"]), report.facts["errors"]


def test_tensor_in_two_files_is_refused(copy, tinyglm):
    folder, tensors, _ = copy("bf16")
    save_file({LAYER + "enorm.weight": tensors[LAYER + "enorm.weight"]}, folder / "z.safetensors")
    errors = ask(folder, tinyglm("bf16")).facts["errors"]
    assert f"{LAYER}enorm.weight is in 2 files (model.safetensors, z.safetensors): the last one read wins" in errors


def test_truncated_file_is_refused_before_vllm_reads_it(copy, tinyglm):
    folder, _, _ = copy("bf16")
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    errors = ask(folder, tinyglm("bf16")).facts["errors"]
    assert errors == ["draft file model.safetensors: model.safetensors: truncated, 100 bytes missing"]


def test_config_that_vllm_does_not_compare_is_compared(copy, tinyglm):
    folder, _, _ = copy("bf16", config={"routed_scaling_factor": 1.0})
    report = ask(folder, tinyglm("bf16"))
    assert [e.partition(":")[0] for e in report.facts["errors"]] == ["config routed_scaling_factor"]
    assert ask(folder, tinyglm("bf16"), same_config=False).ok


@pytest.mark.parametrize(
    ("layout", "change", "how"),
    [("fp8", lambda tensors: None, {"meta": False}), ("nvfp4", widen_scale, {"capability": 100, "tensor_parallel": 2})],
    ids=["accepted with values", "refused"],
)
def test_process_of_its_own_says_what_the_others_say(copy, tinyglm, layout, change, how):
    """All other tests ask a process that had imported vLLM before: `engine_server.py`."""
    folder, _, _ = copy(layout, change, ROUTER)
    forked, started = (
        installed.check(folder, tinyglm(layout), python=python, **how)
        for python in (PYTHON, os.environ["MTPFORGE_TEST_ENGINE_PYTHON_ITSELF"])
    )
    assert forked.checks == started.checks
    assert dict(forked.facts) | {"seconds": 0} == dict(started.facts) | {"seconds": 0}
    assert forked.ok == (layout == "fp8")


def test_path_that_vllm_reads_as_another_method_is_refused(copy, tinyglm):
    folder, _, _ = copy("bf16", name="eagle3-draft")
    assert not ask(folder, tinyglm("bf16")).ok


FULL_SIZE = {
    # census of a published layer 78, config of the draft, target, and words of each error
    "bf16": ("bf16-zai-org", "target-bf16", "target-bf16", []),
    "bf16 beside INT4 that leaves it alone": ("bf16-zai-org", "target-bf16", "target-awq-int4-mtp-ignored", []),
    "fp8": ("fp8-zai-org", "target-fp8", "target-fp8", []),
    "int4": (
        "int4-g32-asym-cosmicraisins",
        "draft-int4-cosmicraisins",
        "target-awq-int4-ignore-to-77",
        ["moe_router_dtype"],
    ),
    "int4 beside a pruned target": (
        "int4-g32-asym-cosmicraisins",
        "draft-int4-cosmicraisins",
        "target-awq-int4-218-experts",
        ["KeyError", "moe_router_dtype"],
    ),
    "bf16 beside INT4": ("bf16-zai-org", "target-bf16", "target-awq-int4-ignore-to-77", ["w2_weight"]),
}


@pytest.mark.parametrize("case", FULL_SIZE.values(), ids=FULL_SIZE.keys())
def test_full_size_layer_beside_a_published_config(census_folder, config_folder, case):
    census_name, config_name, target_name, words = case
    errors = ask(census_folder(census_name, config_name), config_folder(target_name)).facts["errors"]
    assert len(errors) == len(words), errors
    assert all(word in error for word, error in zip(words, errors, strict=True)), errors


def test_target_without_the_nextn_field_needs_the_override(census_folder, config_folder):
    draft = census_folder("int4-g32-asym-cosmicraisins", "draft-int4-cosmicraisins")
    config = json.loads((draft / "config.json").read_text()) | ROUTER
    (draft / "config.json").write_text(json.dumps(config))
    target = config_folder("target-awq-int4-no-nextn-field")
    assert "AttributeError" in ask(draft, target).checks[0].detail
    report = ask(draft, target, overrides={"num_nextn_predict_layers": 1})
    assert report.ok, report.facts["errors"]
    assert report.facts["tensors"] == 3122
