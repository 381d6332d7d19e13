from __future__ import annotations

import json
from pathlib import Path

import pytest

import mtpforge

DEMO = Path(mtpforge.__file__).parent / "_demo"


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    out = tmp_path_factory.mktemp("draft") / "d"
    mtpforge.build(DEMO / "awq-int4", DEMO / "nvfp4", out=out, check="off")
    return out


def test_python_gives_the_command_of_the_command_line(run, draft):
    said = mtpforge.serve_command(draft, DEMO / "awq-int4", hardware="rtx-pro-6000-x4", fork="b12x")
    words = ("serve", str(draft), "--target", str(DEMO / "awq-int4"), "--hardware", "rtx-pro-6000-x4", "--fork", "b12x")
    assert json.loads(run(*words, "--print", "--json").out)["serve"] == said
    assert said[:3] == ["env", "NCCL_P2P_DISABLE=1", "vllm"]
    told = run(*words, "--explain").out
    assert "NCCL_P2P_DISABLE" in told
    assert "these cards have no peer access over PCIe" in told


def test_a_machine_that_the_sizes_do_not_divide_over_is_refused(run, draft):
    ran = run("serve", str(draft), "--target", str(DEMO / "awq-int4"), "--hardware", "h200-x8", "--print")
    assert ran.code == 1
    assert "4 attention heads cannot be split over 8 ranks" in ran.err


def test_one_rank_is_a_number_that_can_be_asked_for(run, draft):
    words = (
        "serve",
        str(draft),
        "--target",
        str(DEMO / "awq-int4"),
        "--hardware",
        "rtx-pro-6000-x4",
        "--print",
        "--json",
    )
    plain, one = (json.loads(run(*words, *more).out)["serve"] for more in ((), ("--tp", "1")))
    assert plain[plain.index("--tensor-parallel-size") + 1] == "4"
    assert "--tensor-parallel-size" not in one
    assert one == mtpforge.serve_command(draft, DEMO / "awq-int4", hardware="rtx-pro-6000-x4", tp=1)


def test_the_engine_must_be_here_whatever_stands_before_it(run, draft, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    ran = run("serve", str(draft), "--target", str(DEMO / "awq-int4"), "--hardware", "rtx-pro-6000-x4")
    assert (ran.code, "`vllm` is not installed here" in ran.err) == (5, True)
