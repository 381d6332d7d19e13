"""Two layers beside each other: what was changed by hand is what is told, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mtpforge
from mtpforge.errors import MtpforgeError

DEMO = Path(mtpforge.__file__).parent / "_demo"
LAYER = "model.layers.3."


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The layer in BF16."""
    return mtpforge.extract(DEMO / "nvfp4", out=tmp_path_factory.mktemp("dense") / "d", check="off").path


@pytest.fixture
def changed(dense, tmp_path):
    """What is done to the tensors, and to the config -> a copy of the layer so changed."""

    def make(tensors=lambda held: None, config=lambda held: None):
        copy = tmp_path / "copy"
        shutil.copytree(dense, copy)
        held = load_file(copy / "model.safetensors")
        tensors(held)
        save_file(held, copy / "model.safetensors")
        stated = json.loads((copy / "config.json").read_text())
        config(stated)
        (copy / "config.json").write_text(json.dumps(stated))
        return copy

    return make


def verdicts(report):
    return {check.name: check.verdict for check in report.checks}


def test_a_draft_is_the_same_as_itself(dense, changed):
    report = mtpforge.diff(dense, changed())
    assert set(verdicts(report).values()) == {"passed"}
    assert (report.summary, report.exit_code, report.facts["differences"]) == ("the same", 0, [])


def test_other_bytes_of_the_same_values_are_told_as_such(dense, changed):
    """0.0 and -0.0: there is no largest error to name a module for."""
    name = f"{LAYER}mlp.experts.5.down_proj.weight"

    def zero(sign):
        def put(held):
            held[name][3, 7] = sign * 0.0

        return put

    one = changed(zero(1.0)).rename(dense.parent / "one")
    report = mtpforge.diff(one, changed(zero(-1.0)))
    (values,) = (check for check in report.checks if check.name == "values")
    assert (values.verdict, report.exit_code) == ("failed", 1)
    assert re.fullmatch(r"1 of \d+ differ in how they are stored, none in its values", values.detail)
    assert {row["worst"] for row in report.facts["kinds"]} == {""}


def test_one_weight_off_is_found_named_and_measured(dense, changed):
    name = "mlp.experts.5.down_proj"

    def off(held):
        held[f"{LAYER}{name}.weight"][3, 7] += 1

    report = mtpforge.diff(dense, changed(off))
    (found,) = report.facts["differences"]
    held = load_file(dense / "model.safetensors")[f"{LAYER}{name}.weight"].double().numpy()
    other = load_file(f"{report.facts['other']}/model.safetensors")[f"{LAYER}{name}.weight"]
    by_hand = np.sqrt(((held - other.double().numpy()) ** 2).sum() / (held**2).sum())
    assert (found["name"], found["kind"]) == (name, "routed experts")
    assert found["relative_error"] == pytest.approx(by_hand, rel=1e-12)
    assert verdicts(report) == {"config": "passed", "names": "passed", "formats": "passed", "values": "failed"}
    assert report.exit_code == 1


def test_a_scale_of_the_whole_matrix_is_compared_too(tmp_path):
    """All parts that have rows are the same then."""
    copy, name = tmp_path / "copy", "mlp.experts.5.down_proj"
    shutil.copytree(DEMO / "nvfp4", copy)
    held = load_file(copy / "model-mtp.safetensors")
    held[f"{LAYER}{name}.weight_scale_2"] *= 2
    save_file(held, copy / "model-mtp.safetensors", metadata={"format": "pt"})
    (found,) = mtpforge.diff(DEMO / "nvfp4", copy).facts["differences"]
    assert (found["name"], found["relative_error"]) == (name, 1.0)  # twice as much everywhere


def test_a_module_of_zeros_is_infinitely_far_from_any_other(dense, changed):
    """The error is of the first one's norm: there is none to divide by."""
    name = f"{LAYER}mlp.experts.5.down_proj.weight"
    zeros = changed(lambda held: held[name].zero_())
    (found,) = mtpforge.diff(zeros, dense).facts["differences"]
    assert found["relative_error"] == float("inf")
    (found,) = mtpforge.diff(dense, zeros).facts["differences"]
    assert found["relative_error"] == 1.0


def test_a_norm_of_other_bits_is_found(dense, changed):
    def off(held):
        held[f"{LAYER}enorm.weight"][0] *= -1

    (found,) = mtpforge.diff(dense, changed(off)).facts["differences"]
    assert (found["name"], found["kind"]) == ("enorm.weight", "norms")


def test_the_same_bits_of_another_dtype_are_another_norm(dense, changed):
    def reread(held):
        held[f"{LAYER}enorm.weight"] = held[f"{LAYER}enorm.weight"].view(torch.float16)

    (found,) = mtpforge.diff(dense, changed(reread)).facts["differences"]
    assert (found["name"], found["forms"]) == ("enorm.weight", ("BF16", "F16"))


def test_keys_of_the_config_are_told_with_both_values(dense, changed):
    report = mtpforge.diff(dense, changed(config=lambda held: held.update(routed_scaling_factor=9.0, odd=1)))
    assert report.facts["config"]["odd"] == (None, 1)
    assert report.facts["config"]["routed_scaling_factor"][1] == 9.0
    assert len(report.facts["config"]) == 2
    assert verdicts(report)["config"] == "failed"


def test_formats_are_told_by_kind_and_values_decoded(dense, tmp_path):
    light = mtpforge.build(DEMO / "awq-int4", DEMO / "nvfp4", out=tmp_path / "int4", check="off").path
    report = mtpforge.diff(dense, light)
    rows = {row["kind"]: row for row in report.facts["kinds"]}
    experts = rows["routed experts"]
    assert (experts["n"], experts["differ"], experts["one"], experts["other"]) == (
        48,
        48,
        "BF16",
        "INT4 g32 asymmetric",
    )
    told = json.loads((light / "mtpforge.json").read_text())["relative_error"][experts["worst"]]
    assert experts["worst_error"] == pytest.approx(told, rel=1e-3)  # verify measured it against the same source
    assert rows["norms"]["differ"] == 0


def test_other_counts_of_experts_are_told_and_experts_not_compared(dense, tmp_path):
    fewer = mtpforge.build(
        DEMO / "awq-int4", DEMO / "nvfp4", out=tmp_path / "pruned", check="off", experts=12, scheme="bf16"
    ).path
    report = mtpforge.diff(dense, fewer)
    names = next(check for check in report.checks if check.name == "names")
    assert "16 experts against 12: experts and router are not compared" in names.detail
    assert {row["kind"] for row in report.facts["kinds"]} == {
        "projection",
        "attention",
        "indexer",
        "shared experts",
        "norms",
    }
    assert report.exit_code == 1


def test_layers_of_two_models_are_refused(dense, changed):
    other = changed(config=lambda held: held.update(hidden_size=64))
    with pytest.raises(MtpforgeError, match="no layers of one model") as refused:
        mtpforge.diff(dense, other)
    assert "`hidden_size` 128 against 64" in refused.value.why


def test_one_key_differs(tmp_path):
    shutil.copytree(DEMO / "nvfp4", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "initializer_range": 0.5}))
    (check,) = [c for c in mtpforge.diff(DEMO / "nvfp4", tmp_path / "copy").checks if c.name == "config"]
    assert check.detail.startswith("1 key differs: ")
