"""`--scales` on the command line."""

import json

import pytest


@pytest.fixture
def sides(tinyglm):
    return "--source", tinyglm("bf16"), "--target", tinyglm("awq-int4")


def test_the_plan_says_what_is_searched(run, sides, in_folder):
    ran = run("build", *sides, "--scales", "mse", "--dry-run")
    assert ran.code == 0
    assert "encoded, mse" in ran.err + ran.out
    plain = run("build", *sides, "--dry-run")
    assert "mse" not in plain.err + plain.out


def test_the_gain_is_reported_and_kept(run, sides, in_folder):
    ran = run("build", *sides, "--scales", "mse", "--check", "off", "-o", "draft", "--json")
    assert ran.code == 0
    (check,) = [c for c in ran.document["report"]["checks"] if c["name"] == "scales"]
    assert "less than" in check["detail"]
    kept = json.loads((in_folder / "draft" / "mtpforge.json").read_text())
    assert kept["scales"] == "mse"
    assert 0 < kept["relative_error"]["mlp.experts.0.up_proj"] < kept["rtn_relative_error"]["mlp.experts.0.up_proj"]
    assert run("verify", "draft", *sides).code == 0


def test_extract_takes_it_too(run, tinyglm, in_folder):
    command = ("extract", "--source", tinyglm("bf16"), "--out", "layer", "--scales", "hqq", "--check", "off")
    refused = run(*command)
    assert refused.code == 2
    assert "`hqq` would find no scale" in refused.err
    assert run(*command, "--scheme", "int4-g128-sym").code == 0


def test_an_unknown_method_is_refused(run, sides, in_folder):
    ran = run("build", *sides, "--scales", "best")
    assert ran.code == 2
    assert "rtn" in ran.err
