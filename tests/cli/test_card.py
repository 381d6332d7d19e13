from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mtpforge

DEMO = Path(mtpforge.__file__).parent / "_demo"


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    out = tmp_path_factory.mktemp("card") / "d"
    mtpforge.build(DEMO / "awq-int4", DEMO / "nvfp4", out=out, check="off")
    return out


def test_card_writes_once_and_says_what_is_missing(run, draft):
    sides = ("--source", DEMO / "nvfp4", "--target", DEMO / "awq-int4")
    ran = run("card", draft, *sides, "--name", "ann/x")
    assert ran.code == 0
    assert "the card states no `license`" in ran.err
    assert (draft / "README.md").read_text() == mtpforge.card(
        draft, source=DEMO / "nvfp4", target=DEMO / "awq-int4", name="ann/x"
    )
    again = run("card", draft, *sides)
    assert (again.code, "`--force` replaces it" in again.err) == (5, True)
    assert run("card", draft, *sides, "--force").code == 0
    assert run("verify", draft, "--target", DEMO / "awq-int4").code == 0  # a card disturbs nobody


def test_push_shows_what_it_would_send(run, draft):
    asked = ("push", draft, "ann/x", "--target", DEMO / "awq-int4", "--dry-run")
    ran = run(*asked)
    assert ran.code == 0
    assert "model.safetensors" in ran.out
    assert "would send" in ran.out
    told = json.loads(run(*asked, "--json").out)
    assert set(told["upload"]["files"]) >= {"README.md", "config.json", "model.safetensors", "mtpforge.json"}


def test_card_of_a_draft_that_changed_since_it_was_built_is_refused(run, draft, tmp_path):
    shutil.copytree(draft, tmp_path / "d", ignore=shutil.ignore_patterns("README.md"))
    weights = tmp_path / "d" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 255
    weights.write_bytes(raw)
    ran = run("card", tmp_path / "d")
    assert (ran.code, "1 tensor of the draft changed since it was made" in ran.err) == (3, True)
    assert not (tmp_path / "d" / "README.md").exists()
