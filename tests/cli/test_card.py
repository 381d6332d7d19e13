from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from faults.hub_server import serving
from huggingface_hub import hf_hub_download

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
    named = f"in the front matter of README.md of `{DEMO / 'nvfp4'}`, or of the card itself"
    assert f"the card states no `license`\n   hint: `license: NAME` {named}\n" in ran.err
    assert "`--source CKPT`" not in ran.err
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


@pytest.mark.parametrize("text", ["# the project\n", "---\ntitle: a page\n---\n# it\n", ""])
def test_force_replaces_cards_of_drafts_and_nothing_else(run, draft, tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    ran = run("card", draft, "-o", tmp_path / "README.md", "--force")
    assert (ran.code, "it is no model card" in ran.err, "`--force`" in ran.err.partition("hint:")[2]) == (
        5,
        True,
        False,
    )
    assert (tmp_path / "README.md").read_text() == text
    assert run("card", draft, "-o", tmp_path / "card.md").code == 0
    assert run("card", draft, "-o", tmp_path / "card.md", "--force").code == 0


def test_force_keeps_a_card_of_ones_own_beside_the_draft(run, draft, tmp_path):
    shutil.copytree(draft, tmp_path / "d", ignore=shutil.ignore_patterns("README.md"))
    (tmp_path / "d" / "README.md").write_text("---\nlicense: mit\n---\nby hand\n")
    ran = run("card", tmp_path / "d", "--force")
    assert (ran.code, "it is no model card of mtpforge's, which alone `--force` replaces" in ran.err) == (5, True)
    assert "hint: move it away, or name another place: `-o card.md`\n" in ran.err
    assert (tmp_path / "d" / "README.md").read_text().endswith("by hand\n")


def next_of(ran):
    return (ran.out + ran.err).partition("Next: ")[2].partition("\n")[0]


def test_next_names_a_push_that_can_be_typed(run, draft, tmp_path):
    shutil.copytree(draft, tmp_path / "d", ignore=shutil.ignore_patterns("README.md"))
    ran = run("card", tmp_path / "d", "--name", "ann/x")
    assert next_of(ran) == f"mtpforge push {tmp_path / 'd'} ann/x --target CKPT"
    ran = run("card", tmp_path / "d", "--target", DEMO / "awq-int4", "--force")
    assert next_of(ran) == f"mtpforge push {tmp_path / 'd'} ORG/NAME --target {DEMO / 'awq-int4'}"
    elsewhere = run("card", tmp_path / "d", "-o", tmp_path / "card.md")
    assert (next_of(elsewhere), "`push` sends the card that lies in the draft's folder" in elsewhere.err) == ("", True)


@pytest.mark.parametrize("name", ["foo", "a/b/c", "ann/x y", "ann/x--y"])
def test_name_that_push_refuses_is_refused(run, draft, tmp_path, name):
    ran = run("card", draft, "--name", name, "-o", tmp_path / "card.md")
    assert (ran.code, "is no name of a repository" in ran.err, "`--name`" in ran.err) == (2, True, True)
    assert not (tmp_path / "card.md").exists()


def test_card_is_put_into_no_other_checkpoint(run, draft, tmp_path):
    target = shutil.copytree(DEMO / "awq-int4", tmp_path / "target")
    (tmp_path / "ggufs").mkdir()  # nothing in it says that it is a model's, but for the option
    for place, named in ((target / "README.md", ()), (tmp_path / "ggufs" / "c.md", ("--source", tmp_path / "ggufs"))):
        ran = run("card", draft, "-o", place, *named)
        assert (ran.code, place.exists()) == (5, False)
        assert f"error: the card would lie in the folder of a checkpoint\nwhere: {place}\n" in ran.err
        assert ran.err.endswith("hint: choose a place beside it with `-o`\n")
    assert run("card", draft, "-o", tmp_path / "c.md").code == 0
    assert run("card", draft, "-o", draft / "of-mine.md").code == 0


def test_card_of_a_repository_in_the_hub_s_cache_is_written_where_o_says(run, draft, tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as hub:
        hub.add("ann/draft", draft)
        for file in (file for file in draft.iterdir() if file.is_file()):
            hf_hub_download("ann/draft", file.name)
        ran = run("card", "ann/draft", "-o", tmp_path / "card.md")
    assert (ran.code, "error:" in ran.err) == (0, False)
    assert (tmp_path / "card.md").read_text().startswith("---\n")
    assert "`push` sends the card that lies in the draft's folder" in ran.err


def test_a_link_that_leads_in_a_circle_is_somebody_s_and_no_bug(run, draft, tmp_path):
    (tmp_path / "c.md").symlink_to(tmp_path / "c.md")
    ran = run("card", draft, "-o", tmp_path / "c.md")
    assert (ran.code, f"error: {tmp_path / 'c.md'} exists\n" in ran.err) == (5, True)
    assert (tmp_path / "c.md").is_symlink()


@pytest.mark.parametrize("option", ["--source", "--target"])
def test_card_is_put_into_no_checkpoint_of_the_home_folder(run, draft, tmp_path, monkeypatch, option):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ggufs").mkdir()
    ran = run("card", draft, "-o", tmp_path / "ggufs" / "c.md", f"{option}=~/ggufs")
    assert (ran.code, "error: the card would lie in the folder of a checkpoint\n" in ran.err) == (5, True)
