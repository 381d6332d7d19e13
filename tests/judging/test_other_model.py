"""A draft or dense layer of another model is called what the command calls it, with a hint that the command takes."""

from __future__ import annotations

import json
import shutil

import pytest


@pytest.fixture
def other(tmp_path):
    """A copy of a checkpoint whose config tells of another model of the same hidden_size."""

    def copy(folder):
        to = tmp_path / f"other-{folder.name}"
        shutil.copytree(folder, to)
        config = json.loads((to / "config.json").read_text())
        (to / "config.json").write_text(json.dumps(config | {"q_lora_rank": config["q_lora_rank"] // 2}))
        return to

    return copy


def told(err):
    """The first line, and the hint."""
    lines = err.splitlines()
    return lines[0], lines[-1]


def test_accept_names_the_draft_and_how_to_have_one(run, tinyglm, made, other, tmp_path):
    draft, target = other(made("bf16")), tinyglm("awq-int4")
    (tmp_path / "text.txt").write_text("some text")
    ran = run("accept", str(draft), "--target", str(target), "--text", str(tmp_path / "text.txt"))
    assert ran.code == 3
    what, hint = told(ran.err)
    assert what.startswith(f"error: draft {draft} and target {target} are not the same model: `q_lora_rank` 64 against")
    assert hint == f" hint: name a draft of the target's model: `mtpforge build --target {target}` makes one"


def test_fidelity_names_draft_reference_and_target(run, tinyglm, made, other):
    draft, dense = made("bf16"), tinyglm("bf16")
    wrong = other(dense)
    what, hint = told(run("fidelity", str(draft), "--reference", str(wrong)).err)
    assert what.startswith(f"error: draft {draft} and reference {wrong} are not the same model: ")
    assert hint.endswith("or the dense layer of the draft's: `--reference ORG/NAME`")
    what, hint = told(run("fidelity", str(draft), "--reference", str(dense), "--target", str(wrong)).err)
    assert what.startswith(f"error: target {wrong} and reference {dense} are not the same model: ")
    assert hint == " hint: name a target of the reference's model: `--target ORG/NAME`"


def test_validate_refuses_a_reference_of_another_model_before_verify(run, tinyglm, made, other, inputs):
    draft, target, wrong = made("int4-g32-asym"), tinyglm("awq-int4"), other(tinyglm("bf16"))
    sides = ("--target", str(target), "--reference", str(wrong), "--inputs", str(inputs))
    ran = run("validate", str(draft), *sides)
    assert (ran.code, ran.out) == (3, "")
    what, hint = told(ran.err)
    assert what.startswith(f"error: reference {wrong} and target {target} are not the same model: ")
    assert hint == " hint: name the dense layer of the target's model: `--reference ORG/NAME`"
