"""A head of another version, as its user meets it: warned of by every command, asked about where nothing says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mtpforge

LIST = "`--source zai-org/GLM-5.3` for GLM-5.3, `--source zai-org/GLM-5.2` for GLM-5.2"
BADLY = "a head trained for another version drafts badly (2.7 tokens a step where 3.6 were due)"


@pytest.fixture
def target(in_folder, tinyglm):
    return shutil.copytree(tinyglm("awq-int4"), in_folder / "GLM-5.2-AWQ").name


def source(tinyglm, name: str, base: str = "") -> str:
    shutil.copytree(tinyglm("nvfp4"), name)
    if base:
        Path(name, "README.md").write_text(f"---\nbase_model: {base}\n---\n")
    return name


def test_build_asks_where_nothing_states_a_version(run, in_folder, tinyglm):
    shutil.copytree(tinyglm("awq-int4"), in_folder / "foo")
    ran = run("build", "--target", "foo")
    assert ran.code == 3
    assert "cause: no name, card or config says which GLM the target is" in ran.err
    assert LIST in ran.err
    assert not (in_folder / "out").exists()
    assert run("inspect", "foo").err.rstrip().endswith("mtpforge build --target foo --source ORG/NAME")


def test_build_from_a_named_source_of_another_version_warns_of_both(run, target, tinyglm):
    ran = run("build", "--target", target, "--source", source(tinyglm, "head", "zai-org/GLM-5.3"), "-o", "draft")
    assert ran.code == 0
    assert (
        "warning: the source is GLM-5.3 by `base_model` of its card (zai-org/GLM-5.3), the target GLM-5.2 by its name"
        f" (GLM-5.2-AWQ): {BADLY}\n  where: head\n   hint: name a source of the target's version: `--source ORG/NAME`\n"
    ) in ran.err


def test_build_from_a_source_of_the_same_version_says_nothing(run, target, tinyglm):
    ran = run("build", "--target", target, "--source", source(tinyglm, "GLM-5.2-NVFP4"), "-o", "draft")
    assert ran.code == 0
    assert "drafts badly" not in ran.err + ran.out


@pytest.fixture
def draft(run, target, tinyglm):
    """Of 5.3, beside a target of 5.2, in a folder that is called as the target."""
    ran = run("build", "--target", target, "--source", source(tinyglm, "GLM-5.3"), "-o", "GLM-5.2-MTP")
    assert ran.code == 0
    return "GLM-5.2-MTP"


def test_manifest_records_both_versions_and_what_states_them(draft):
    body = json.loads(Path(draft, "mtpforge.json").read_text())
    assert body["source"]["stated"] == [{"version": "5.3", "by": "its name"}]
    assert body["target"]["stated"] == [{"version": "5.2", "by": "its name"}]


FOUND = f"the draft is GLM-5.3 by its mtpforge.json, the target GLM-5.2 by its name (GLM-5.2-AWQ): {BADLY}"


def test_verify_warns_of_a_draft_of_another_version(run, draft, target):
    ran = run("verify", draft, "--target", target, "--json")
    (trap,) = [trap for trap in ran.document["report"]["traps"] if trap["id"] == "other-version"]
    assert (ran.code, trap["severity"], trap["silent"], trap["message"]) == (0, "warning", True, FOUND)
    (check,) = [check for check in ran.document["report"]["checks"] if check["name"] == "version"]
    assert (check["verdict"], check["detail"]) == ("warning", FOUND)
    assert f"warning: {FOUND}\n" in run("verify", draft, "--target", target).err


def test_serve_warns_of_a_draft_of_another_version(run, draft, target):
    ran = run("serve", draft, "--target", target, "--print")
    assert ran.code == 0
    assert f"warning: {FOUND}\n" in ran.err
    (trap,) = run("serve", draft, "--target", target, "--print", "--json").document["traps"]
    assert (trap["id"], trap["message"]) == ("other-version", FOUND)


def test_python_warns_of_a_draft_of_another_version(draft, target):
    (trap,) = mtpforge.explain_serve(draft, target).traps
    assert (trap.id, trap.message) == ("other-version", FOUND)
    assert f"warning: {FOUND}" in str(mtpforge.explain_serve(draft, target))
    with pytest.warns(UserWarning, match="the draft is GLM-5[.]3 by its mtpforge.json") as warned:
        mtpforge.serve_command(draft, target)
    assert [line.filename for line in warned] == [__file__]  # where it was called


def test_verify_warns_of_a_source_of_another_version(run, target, tinyglm):
    right, wrong = source(tinyglm, "GLM-5.2"), source(tinyglm, "GLM-5.3")
    assert run("build", "--target", target, "--source", right, "-o", "draft").code == 0
    said = run("verify", "draft", "--target", target, "--source", right)
    assert "target GLM-5.2 by its name (GLM-5.2-AWQ), draft GLM-5.2 by its mtpforge.json, source GLM-5.2 by" in said.out
    said = run("verify", "draft", "--target", target, "--source", wrong)
    assert "warning: the source is GLM-5.3 by its name (GLM-5.3), the target GLM-5.2 by its name" in said.err
    assert run("serve", "draft", "--target", target, "--print", "--json").document["traps"] == []


@pytest.mark.parametrize("age", ["now", "before it recorded what the target states"])
def test_an_overlay_states_what_its_target_states(run, target, tinyglm, age):
    """Its own name says nothing, and a config may say nothing either."""
    right = source(tinyglm, "GLM-5.2")
    asked = ("--target", target, "--source", right, "--scheme", "nvfp4", "-o", "draft", "--overlay", "told")
    assert run("build", *asked).code == 0
    mark = Path("told", "mtpforge-overlay.json")
    body = json.loads(mark.read_text())
    assert [each["version"] for each in body["stated"]] == ["5.2"]
    if age != "now":
        del body["stated"]
        mark.write_text(json.dumps(body))
    said = run("verify", "draft", "--target", "told", "--source", right)
    assert said.code == 0
    assert "target GLM-5.2 by its mtpforge-overlay.json" in said.out
    said = run("verify", "draft", "--target", "told", "--source", source(tinyglm, "GLM-5.3"))
    assert (
        "warning: the source is GLM-5.3 by its name (GLM-5.3), the target GLM-5.2 by its mtpforge-overlay" in said.err
    )


@pytest.mark.parametrize("record", ["", "[]", "[" * 100_000, '{"target": 5, "stated": {}}', '{"stated": [1, {}]}'])
def test_an_overlay_s_record_that_is_none_states_nothing(run, target, tinyglm, record):
    right = source(tinyglm, "GLM-5.2")
    asked = ("--target", target, "--source", right, "--scheme", "nvfp4", "-o", "draft", "--overlay", "told")
    assert run("build", *asked).code == 0
    Path("told", "mtpforge-overlay.json").write_text(record)
    assert "nothing says which GLM the target is" in run("verify", "draft", "--target", "told", "-v").out


def test_verify_says_what_it_cannot_know(run, demo, tinyglm):
    ran = run("verify", demo / "out" / "demo", "--target", tinyglm("awq-int4"), "--json")
    (check,) = [check for check in ran.document["report"]["checks"] if check["name"] == "version"]
    assert (check["verdict"], check["detail"]) == (
        "not checked",
        "nothing says which GLM the target or the draft is; a head of another one drafts badly",
    )


def test_an_extracted_layer_keeps_its_version(run, target, tinyglm):
    assert run("extract", "--source", source(tinyglm, "GLM-5.3"), "-o", "layer").code == 0
    ran = run("build", "--target", target, "--source", "layer", "-o", "draft", "--dry-run")
    assert "warning: the source is GLM-5.3 by its mtpforge.json, the target GLM-5.2 by its name" in ran.err


def test_inspect_says_which_version_and_by_what(run, target):
    ran = run("inspect", target, "--json")
    facts = ran.document["report"]["facts"]
    assert facts["version"] == "5.2"
    assert facts["stated"] == [{"version": "5.2", "by": "its name", "said": "GLM-5.2-AWQ"}]
    assert "\nversion 5.2 by its name (GLM-5.2-AWQ)\n" in run("inspect", target).out


def test_inspect_says_that_two_versions_are_stated(run, target):
    Path(target, "README.md").write_text("---\nbase_model: zai-org/GLM-5.3\n---\n")
    ran = run("inspect", target)
    assert "\nversion 5.2 by its name (GLM-5.2-AWQ), 5.3 by `base_model` of its card (zai-org/GLM-5.3)\n" in ran.out
    assert "warning: more than one version is stated: GLM-5.2 by its name (GLM-5.2-AWQ) and GLM-5.3 by" in ran.err
    assert run("inspect", target, "--json").document["report"]["facts"]["version"] is None
