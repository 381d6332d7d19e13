from __future__ import annotations

import json
from pathlib import Path

import mtpforge

DEMO = Path(mtpforge.__file__).parent / "_demo"


def test_differences_are_a_table_an_exit_code_and_json(run, tmp_path):
    mtpforge.extract(DEMO / "nvfp4", out=tmp_path / "d", check="off")
    ran = run("diff", DEMO / "nvfp4", tmp_path / "d")
    assert ran.code == 1
    assert "48 routed experts" in ran.out
    assert "not the same" in ran.out
    told = json.loads(run("diff", DEMO / "nvfp4", tmp_path / "d", "--json").out)
    assert (told["ok"], told["exit_code"]) == (False, 1)
    assert {row["kind"]: row["differ"] for row in told["report"]["facts"]["kinds"]}["routed experts"] == 48
    assert run("diff", tmp_path / "d", tmp_path / "d").code == 0


def test_a_folder_without_a_layer_is_refused(run):
    ran = run("diff", DEMO / "nvfp4", DEMO / "awq-int4")
    assert ran.code == 3
    assert "awq-int4 holds no MTP layer" in ran.err
    assert "--source" not in ran.err  # `diff` has no such option
