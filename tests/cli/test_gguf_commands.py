"""GGUF on the command line: as a source, and where it can be none."""

from __future__ import annotations

import pytest
from gguf_files import Type, convert


@pytest.fixture(scope="module")
def file(tinyglm, tmp_path_factory):
    kinds = {"_exps": Type.Q4_0, "attn_k_b": Type.F16, "": Type.Q8_0}
    folder = tmp_path_factory.mktemp("model")
    return convert(tinyglm("bf16"), folder / "GLM-5.2-Q4_0.gguf", kinds, keys={"general.name": "GLM 5.1"}).first


def test_inspect_says_what_is_stored_and_what_the_file_is_called(run, file):
    ran = run("inspect", file, "--json")
    assert ran.code == 0
    facts = ran.document["report"]["facts"]
    stored = {(row["kind"], row["stored"], row["n"]) for row in facts["mtp"]["stored"]}
    assert {("routed experts", "Q4_0", 48), ("attention", "Q8_0 in two parts", 1), ("router", "F32", 1)} <= stored
    assert (facts["quant_method"], facts["scheme"], facts["demanded"], facts["mtp"]["bits"]) == ("gguf", None, None, 4)
    assert [(s["version"], s["by"]) for s in facts["stated"]] == [
        ("5.1", "`general.name` of its header"),
        ("5.2", "the name of its file"),
    ]
    checks = {check["name"]: check["verdict"] for check in ran.document["report"]["checks"]}
    assert checks == {"MTP layer": "passed", "scheme": "not checked"}
    assert ran.document["report"]["traps"] == []


def test_dry_run_plans_by_headers_alone(run, file, tinyglm):
    ran = run("build", "--target", tinyglm("awq-int4"), "--source", file, "--dry-run")
    assert ran.code == 0
    assert "Q4_0" in ran.out
    assert "INT4 g32 asymmetric" in ran.out


@pytest.mark.parametrize(
    "words",
    [
        ("build", "--target", "FILE"),
        ("serve", "DRAFT", "--target", "FILE"),
        ("verify", "DRAFT", "--target", "FILE"),
        ("validate", "DRAFT", "--target", "FILE"),
        ("schemes", "--from", "FILE"),
        ("capture", "--target", "FILE", "--text", "TEXT"),
        ("prune-plan", "--target", "FILE"),
    ],
)
def test_as_a_target_it_is_refused_by_every_command(run, in_folder, file, tinyglm, words):
    (in_folder / "t.txt").write_text("text\n")
    named = {"FILE": file, "DRAFT": tinyglm("bf16"), "TEXT": "t.txt"}
    ran = run(*(named.get(word, word) for word in words))
    assert ran.code == 3, ran.err
    assert f"error: `{file}` cannot be a target\n" in ran.err
    assert "a draft for llama.cpp is made by its own converter\n" in ran.err
    assert f"`--source {file}`" in ran.err


def test_without_a_target_there_is_no_config_json_to_take(run, in_folder, file):
    ran = run("extract", "--source", file, "-o", "out")
    assert ran.code == 3
    assert f"hint: `mtpforge build --target CKPT --source {file}`" in ran.err
    assert not (in_folder / "out").exists()


def test_the_folder_of_the_source_is_not_replaced(run, in_folder, file, tinyglm):
    ran = run("build", "--target", tinyglm("awq-int4"), "--source", file, "-o", file.parent, "--force", "--dry-run")
    assert ran.code == 5
    assert "error: the output would replace a folder that holds the source\n" in ran.err
