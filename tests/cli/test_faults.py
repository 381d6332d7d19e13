"""What a user gets wrong about places, names and variables: the cause as it is, the option as this command calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

import mtpforge
from mtpforge.durable import files

DEMO = Path(mtpforge.__file__).parent / "_demo"


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    out = tmp_path_factory.mktemp("faults") / "d"
    mtpforge.build(DEMO / "awq-int4", DEMO / "nvfp4", out=out, check="off")
    return out


def test_card_below_a_file_is_no_bug(run, draft, tmp_path):
    (tmp_path / "file").write_text("")
    ran = run("card", draft, "-o", tmp_path / "file" / "card.md")
    assert (ran.code, "cannot write the card" in ran.err, "choose another place" in ran.err) == (5, True, True)


def test_place_that_takes_no_files_is_told_as_such(run, draft):
    ran = run("card", draft, "-o", "/proc/card.md")
    assert (ran.code, "cannot write the card" in ran.err) == (5, True)
    assert "/proc/.card" not in ran.err
    for asked in (("build", "--target", DEMO / "awq-int4", "--source", DEMO / "nvfp4"), ("extract", DEMO / "nvfp4")):
        words = asked if asked[0] == "build" else ("extract", "--source", asked[1])
        ran = run(*words, "-o", "/proc/draft")
        assert (ran.code, "it is no disk" in ran.err, "not enough" in ran.err) == (5, True, False)


@pytest.mark.parametrize(
    ("words", "what", "option"),
    [
        (("graft", DEMO / "nvfp4", "--into", DEMO / "awq-int4", "-o"), "graft", "--out"),
        (("delta", DEMO / "nvfp4", "--against", DEMO / "awq-int4", "-o"), "delta", "--out"),
        (("merge", "--base", DEMO / "nvfp4", "--take", f"model.layers.3.*={DEMO / 'nvfp4'}", "-o"), "merge", "--out"),
        (("capture", "--target", DEMO / "awq-int4", "--text", Path(__file__), "-o"), "inputs file", "--out"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_place_that_takes_no_files_is_told_of_what_was_to_lie_there(run, words, what, option):
    ran = run(*words, "/proc/x")
    assert (ran.code, f"error: cannot write the {what}\nwhere: /proc/x\ncause: it is no disk" in ran.err) == (5, True)
    assert f" hint: choose a folder that you may write to with `{option}`\n" in ran.err


LONG = "a" * 300  # a file system takes 255


@pytest.mark.parametrize(
    "words",
    [
        ("schemes", LONG),
        ("card", LONG),
        ("card", DEMO / "nvfp4", "-o", f"{LONG}.md"),
        ("push", LONG, "org/name"),
        ("serve", LONG, "--target", DEMO / "awq-int4", "--print"),
        ("graft", "--delta", LONG, "--into", DEMO / "awq-int4", "-o", "graft"),
        ("capture", "--target", LONG, "--text", Path(__file__)),
        ("build", "--target", DEMO / "awq-int4", "--source", DEMO / "nvfp4", "--inputs", LONG),
        ("build", "--target", DEMO / "awq-int4", "--source", DEMO / "nvfp4", "--keep-experts", LONG),
        ("build", "--target", DEMO / "awq-int4", "--source", DEMO / "nvfp4", "--input-scales", f"{LONG}.safetensors"),
    ],
    ids=lambda words: f"{words[0]} {words[-2] if str(words[-2]).startswith('-') else ''}",
)
def test_name_longer_than_a_file_may_have_is_no_bug(run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    ran = run(*words)
    assert (ran.code in {2, 3, 5}, "a bug" in ran.err, " hint: " in ran.err) == (True, False, True), ran.err


NOBODY = "~nobody-is-called-so"


@pytest.mark.parametrize(
    "words",
    [
        ("card", NOBODY),
        ("push", NOBODY, "org/name"),
        ("graft", "--delta", NOBODY, "--into", DEMO / "awq-int4", "-o", "graft"),
        ("build", "--target", DEMO / "awq-int4", "--source", DEMO / "nvfp4", "--input-scales", f"{NOBODY}.safetensors"),
        ("doctor", "--engine-python", f"{NOBODY}/bin/python"),
    ],
    ids=lambda words: words[0],
)
def test_home_of_a_user_who_is_none_is_no_bug(run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    ran = run(*words)
    assert (ran.code in {2, 3, 5}, "a bug" in ran.err, " hint: " in ran.err) == (True, False, True), ran.err


def test_error_of_a_replaced_file_names_the_file_that_was_asked_for(tmp_path):
    folder = tmp_path / "card.md"
    (folder / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory") as caught:
        files.replace(folder, b"text")
    assert str(folder) in {caught.value.filename, caught.value.filename2}
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]


def test_hint_names_the_option_as_the_command_calls_it(run, draft):
    ran = run("fidelity", draft, "--reference", DEMO / "awq-int4")
    assert (ran.code, "`--reference " in ran.err, "--source" in ran.err) == (3, True, False)
    ran = run("build", "--target", DEMO / "awq-int4", "--source", DEMO / "awq-int4")
    assert "--source" in ran.err


def test_wrong_value_of_a_variable_names_the_variable(run, monkeypatch):
    monkeypatch.setenv("MTPFORGE_BUILD_TP", "many")
    ran = run("build", "--target", DEMO / "awq-int4")
    assert (ran.code, "where: environment variable MTPFORGE_BUILD_TP\n" in ran.err) == (2, True)
    monkeypatch.delenv("MTPFORGE_BUILD_TP")
    ran = run("build", "--target", DEMO / "awq-int4", "--tp", "many")
    assert (ran.code, "variable" in ran.err) == (2, False)


def test_list_of_schemes_has_one_sentence_of_each(run):
    lines = run("schemes").out.splitlines()
    assert [line for line in lines if "For targets" in line] == []
    assert any("For targets" in line for line in run("schemes", "-v").out.splitlines())
