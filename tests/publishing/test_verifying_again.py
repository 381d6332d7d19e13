"""Grafts and merges that are verified after the fact: by their own records, beside what they were made of."""

from __future__ import annotations

import json
import shutil

import pytest
from grafted import LAYER, tensors

import mtpforge
from mtpforge.errors import MtpforgeError

EXPERTS = "model.layers.[0-2].mlp.experts.*"


@pytest.fixture
def graft(tinyglm, tmp_path):
    """A copy, so that it may be spoiled; the target beside it, under its own name."""
    target = tmp_path / "awq-int4"
    shutil.copytree(tinyglm("awq-int4"), target)
    return mtpforge.graft(tinyglm("bf16"), target, out=tmp_path / "graft", link="copy").path


@pytest.fixture
def merge(tinyglm, tmp_path):
    for name in ("int4-int8mix", "awq-int4"):
        shutil.copytree(tinyglm(name), tmp_path / name)
    takes = {EXPERTS: tmp_path / "awq-int4"}
    return mtpforge.merge(tmp_path / "int4-int8mix", takes, out=tmp_path / "merged", link="copy").path


def checks(folder, source=None):
    return {check.name: check for check in mtpforge.verify(folder, folder, source).checks}


def flip(folder, name):
    """One bit of a tensor's first byte."""
    path = folder / tensors(folder)[name][0]
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start + json.loads(raw[8:start])[name]["data_offsets"][0]] ^= 1
    path.write_bytes(raw)


def test_a_graft_is_judged_by_its_own_record(graft, tinyglm):
    found = checks(graft, tinyglm("bf16"))
    assert {check.verdict for check in found.values()} <= {"passed", "not checked", "warning"}
    assert found["manifest"].verdict == "passed"
    assert found["main model"].verdict == "passed"
    n_around = sum(not name.startswith(LAYER) for name in tensors(graft))
    assert f"{n_around:,} read beside where they come from" in found["main model"].detail
    assert found["index"].verdict == "passed"


def test_a_layer_that_changed_since_is_found_and_grafted_again(graft, tinyglm):
    flip(graft, f"{LAYER}mlp.experts.3.up_proj.weight")
    found = checks(graft)["manifest"]
    assert found.verdict == "failed"
    assert "1 tensors changed since" in found.detail
    assert found.fix == (
        f"graft the layer again: `mtpforge graft FOLDER/bf16 --into {graft.parent / 'awq-int4'} --force -o {graft}`,"
        " where `FOLDER` is the folder that holds `bf16`"
    )


def test_a_tensor_around_the_layer_that_changed_is_found(graft):
    name = next(name for name in tensors(graft) if not name.startswith(LAYER) and name.endswith("weight_scale"))
    flip(graft, name)
    found = checks(graft)["main model"]
    assert (found.verdict, f"`{name}` holds other bytes" in found.detail) == ("failed", True)
    assert found.fix.startswith("graft the layer again: `mtpforge graft ")


def test_a_target_that_moved_is_said_and_found_where_the_hint_names_it(graft):
    elsewhere = graft.parent / "elsewhere" / "awq-int4"  # without a layer: no values are compared with it
    elsewhere.parent.mkdir()
    (graft.parent / "awq-int4").rename(elsewhere)
    found = checks(graft)["main model"]
    gone = "awq-int4 is not here, nor beside it, as it was then"
    named = f"{gone}; `--source DIR` names it, or what lies beside it"
    assert (found.verdict, found.detail) == ("not checked", named)
    followed = checks(graft, elsewhere)
    assert (followed["main model"].verdict, followed["values"].verdict) == ("passed", "not checked")


def test_a_target_whose_own_layer_gave_way_is_no_source_of_the_one_in_the_graft(tinyglm, tmp_path):
    target, elsewhere = tmp_path / "fp8", tmp_path / "elsewhere" / "fp8"
    shutil.copytree(tinyglm("fp8"), target)
    graft = mtpforge.graft(tinyglm("nvfp4"), target, out=tmp_path / "graft", link="copy").path
    elsewhere.parent.mkdir()
    target.rename(elsewhere)
    followed = checks(graft, elsewhere)
    assert (followed["main model"].verdict, followed["values"].verdict) == ("passed", "not checked")
    assert checks(graft, tinyglm("nvfp4"))["values"].verdict == "passed"


def test_the_record_names_the_file_that_is_missing(graft):
    (graft / "mtpforge-graft.json").unlink()
    found = checks(graft)
    assert found["manifest"].detail.startswith("no mtpforge-graft.json: the layer was made by something else")
    assert "main model" not in found


def test_a_graft_beside_another_checkpoint_is_no_draft(graft, tinyglm):
    with pytest.raises(MtpforgeError) as caught:
        mtpforge.verify(graft, tinyglm("awq-int4"))
    assert caught.value.what == "that is a graft, no draft: it is served alone"
    assert caught.value.fix == f"`mtpforge verify {graft} --target {graft}` judges the layer in it, and all around it"


def test_the_version_of_both_sides_is_known_after_a_graft(tinyglm, tmp_path):
    layer, target = tmp_path / "GLM-5.2-BF16", tmp_path / "GLM-5.2-AWQ"
    layer.symlink_to(tinyglm("bf16"))
    target.symlink_to(tinyglm("awq-int4"))
    made = mtpforge.graft(layer, target, out=tmp_path / "graft", link="sym")
    version = {check.name: check for check in made.report.checks}["version"]
    assert version.verdict == "passed"
    assert "target GLM-5.2 by its mtpforge-graft.json" in version.detail
    assert checks(made.path)["version"].verdict == "passed"
    assert mtpforge.inspect(made.path).facts["version"] == "5.2"
    delta = mtpforge.delta(layer, target, out=tmp_path / "delta").path
    again = mtpforge.graft(None, target, delta=delta, out=tmp_path / "again", link="sym").path
    assert (again / "mtpforge-graft.json").read_bytes() == (made.path / "mtpforge-graft.json").read_bytes()


def test_a_merge_is_compared_with_what_it_was_made_of(merge):
    found = checks(merge)
    assert {check.verdict for check in found.values()} <= {"passed", "not checked", "warning"}
    assert (
        found["taken tensors"].detail
        == f"0 tensors in shared files, {len(tensors(merge))} read beside where they come from"
    )
    assert found["modules"].verdict == "passed"
    assert "manifest" not in found


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.experts.0.up_proj.weight_scale", "model.layers.0.self_attn.o_proj.weight"]
)
def test_a_tensor_of_a_merge_that_changed_is_found_on_either_side(merge, name):
    flip(merge, name)
    found = checks(merge)["taken tensors"]
    assert found.verdict == "failed"
    assert f"`{name}` holds other bytes than the one of " in found.detail
    home = merge.parent
    assert found.fix == (
        f"merge again: `mtpforge merge --base {home / 'int4-int8mix'} --take '{EXPERTS}={home / 'awq-int4'}' --force"
        f" -o {merge}`"
    )


def test_what_a_merge_was_made_of_is_found_at_the_source_and_beside_it(merge):
    elsewhere = merge.parent / "elsewhere"
    elsewhere.mkdir()
    for name in ("int4-int8mix", "awq-int4"):
        (merge.parent / name).rename(elsewhere / name)
    assert checks(merge)["taken tensors"].verdict == "not checked"
    report = mtpforge.verify(merge, merge, elsewhere / "int4-int8mix")
    found = [check for check in report.checks if check.name in ("values", "taken tensors")]
    assert [(check.name, check.verdict) for check in found] == [("values", "passed"), ("taken tensors", "passed")]


def test_a_side_of_a_merge_that_gave_no_layer_is_found_where_the_hint_names_it(merge):
    elsewhere = merge.parent / "elsewhere" / "awq-int4"
    elsewhere.parent.mkdir()
    (merge.parent / "awq-int4").rename(elsewhere)
    followed = checks(merge, elsewhere)
    assert (followed["taken tensors"].verdict, followed["values"].verdict) == ("passed", "not checked")


def test_what_of_a_merge_could_not_be_compared_is_said(merge):
    shutil.rmtree(merge.parent / "awq-int4")
    found = checks(merge)["taken tensors"]
    n = sum(".mlp.experts." in name and ".layers.3." not in name for name in tensors(merge))
    assert found.verdict == "not checked"
    assert found.detail.startswith(
        f"of {n:,} tensors: awq-int4 is not here, nor beside it, as it was then; `--source DIR` names it, or what lies"
        " beside it; 0 tensors in"
    )
    flip(merge, "model.layers.0.self_attn.o_proj.weight")  # of the side that is here
    assert checks(merge)["taken tensors"].verdict == "failed"


def test_a_side_that_changed_since_is_none(merge):
    config = merge.parent / "int4-int8mix" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert "int4-int8mix is not here" in checks(merge)["taken tensors"].detail


@pytest.mark.parametrize("target", ["awq-int4", "bf16"])
def test_a_graft_that_is_fresh_is_warned_of_nothing(tinyglm, tmp_path, target):
    """The block is the whole model's: the engine's rules for a draft's own block say nothing of it."""
    made = mtpforge.graft(tinyglm("bf16"), tinyglm(target), out=tmp_path / "graft", link="sym")
    found = checks(made.path)
    assert {check.name: check.verdict for check in found.values() if check.verdict in ("warning", "failed")} == {}
    judged = {check.name for check in made.report.checks}
    assert found.keys() - judged == {"manifest"}  # it is being written
    assert judged - found.keys() <= {"router", "loads as it is"}


def test_a_merge_that_is_fresh_is_warned_of_nothing(merge):
    assert {check.verdict for check in checks(merge).values()} <= {"passed", "not checked"}
