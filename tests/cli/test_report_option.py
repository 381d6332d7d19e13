"""`--report`: a page beside what is printed, whatever the answer is; what is wrong with its place is said first."""

from __future__ import annotations

import builtins
import errno
import json
import shutil

import pytest
from reporting.pages import Read, wrong_numbers


@pytest.fixture
def folder(in_folder, demo, tinyglm):
    for layout in ("awq-int4", "nvfp4"):
        (in_folder / layout).symlink_to(tinyglm(layout))
    shutil.copytree(demo / "out" / "demo", in_folder / "draft")
    return in_folder


def test_page_carries_the_document_that_json_prints(run, folder):
    line = ("verify", "draft", "--target", "awq-int4", "--source", "nvfp4")
    ran = run(*line, "--report", "p.html", "--json")
    text = (folder / "p.html").read_text()
    document = Read(text).document
    assert document.pop("page")["argv"] == [*line, "--report", "p.html", "--json"]
    assert document == ran.document
    assert wrong_numbers(text) == []


def test_answer_no_is_a_page_and_exit_1(run, folder):
    weights = folder / "draft" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\x01" * 8)
    ran = run("verify", "draft", "--target", "awq-int4", "--report", "p.html")
    assert (ran.code, Read((folder / "p.html").read_text()).document["ok"]) == (1, False)
    assert "report  p.html\n" in ran.out


def test_missing_engine_is_told_in_the_page(run, folder):
    line = ("validate", "draft", "--target", "awq-int4", "--engine-python", shutil.which("true"))
    ran = run(*line, "--report", "p.html")
    assert ran.code == 5
    assert "What was not checked" in (folder / "p.html").read_text()


@pytest.fixture
def page_that_cannot_be_written(monkeypatch, tmp_path_factory):
    """What the disk says of the page once the result is there: full, or nothing that anybody foresaw."""
    from mtpforge.durable import files

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("tracebacks")))

    def fail_with(error):
        def replace(path, data):
            raise error

        monkeypatch.setattr(files, "replace", replace)

    return fail_with


@pytest.mark.parametrize(
    ("error", "code", "what"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 5, "the disk is full: the report could not be written"),
        (ZeroDivisionError("surprise"), 70, "a bug in mtpforge: ZeroDivisionError: surprise"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_result_is_printed_also_where_its_page_cannot_be_written(
    run, folder, page_that_cannot_be_written, error, code, what
):
    line = ("verify", "draft", "--target", "awq-int4")
    whole = run(*line, "--json").document
    page_that_cannot_be_written(error)
    ran = run(*line, "--report", "p.html", "--json")
    assert ran.code == code
    told = ran.document.pop("error")
    assert told["what"] == what
    assert ran.document | {"error": None} == whole | {"ok": False, "exit_code": code, "error": None}
    assert f"error: {what}\n" in ran.err
    shown = run(*line, "--report", "p.html")
    assert shown.code == code
    assert run(*line).out == shown.out
    assert not (folder / "p.html").exists()


@pytest.mark.parametrize("command", ["build", "verify", "validate", "fidelity", "accept", "bench", "prune-plan"])
def test_place_is_refused_before_anything_else(run, in_folder, command):
    (in_folder / "mine.html").write_text("mine")
    words = {"build": [], "prune-plan": []}.get(command, ["nowhere"])
    words += {"fidelity": ["--reference", "nowhere"], "bench": []}.get(command, ["--target", "nowhere"])
    words += ["--text", "nowhere"] if command == "accept" else []
    ran = run(command, *words, "--report", "mine.html")
    assert (ran.code, ran.out) == (5, "")
    assert ran.err.startswith("error: the report would take the place of something else\nwhere: mine.html\n")


@pytest.mark.parametrize(
    ("command", "line", "place"),
    [
        ("verify", ("draft", "--target", "awq-int4"), "draft/p"),
        ("validate", ("draft", "--target", "awq-int4"), "awq-int4/p"),
        ("fidelity", ("draft", "--reference", "ggufs"), "ggufs/p"),
        ("fidelity", ("draft", "--reference", "nvfp4", "--compare", "ggufs"), "ggufs/new/p"),
        ("accept", ("ggufs", "--target", "awq-int4", "--text", "nowhere"), "ggufs/p"),
        ("prune-plan", ("--target", "awq-int4", "--source", "ggufs"), "ggufs/p"),
        ("build", ("--target", "awq-int4", "-o", "out/new"), "out/new/p"),
        ("build", ("--target", "awq-int4", "--source", "nvfp4"), "out/awq-int4-MTP-awq-int4/p"),
        ("build", ("--target", "awq-int4", "--overlay", "over"), "over/p"),
    ],
)
def test_page_stays_out_of_folders_that_the_command_reads_or_makes(run, folder, command, line, place):
    (folder / "ggufs").mkdir()  # nothing in it says that it is a model's
    if "--source" in line and command == "build":
        place = f"{json.loads(run(command, *line, '--dry-run', '--json').out)['draft']}/p"
    before = sorted(folder.rglob("*"))
    ran = run(command, *line, "--report", f"{place}.html")
    assert ran.code == 5
    assert ran.err.startswith(f"error: the report would lie in the folder of a checkpoint\nwhere: {place}.html\n")
    if command in ("fidelity", "prune-plan") and place == "ggufs/p":
        ran = run(command, *line, "--picture", f"{place}.svg")
        assert ran.err.startswith(f"error: the picture would lie in the folder of a checkpoint\nwhere: {place}.svg\n")
    assert sorted(folder.rglob("*")) == before


def test_name_of_a_repository_is_no_folder(run, in_folder):
    ran = run("verify", "org/draft", "--target", "org/model", "--offline", "--report", "org/model/p.html")
    assert "would lie in" not in ran.err


def test_result_is_printed_also_where_its_picture_cannot_be_drawn(run, folder, monkeypatch):
    from matplotlib.figure import Figure

    def savefig(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    line = ("prune-plan", "--target", "awq-int4", "--source", "nvfp4", "--experts", "12")
    whole = run(*line, "--json").document
    monkeypatch.setattr(Figure, "savefig", savefig)
    ran = run(*line, "--picture", "p.svg", "--json")
    assert ran.code == 5
    assert ran.document["error"]["what"] == "`p.svg` cannot be written"
    assert ran.document["scores"] == whole["scores"]


def test_missing_library_is_named_with_what_installs_it(run, in_folder, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    ran = run("verify", "nowhere", "--target", "nowhere", "--report", "p.html")
    assert ran.code == 5
    assert ran.err.startswith("error: a report needs matplotlib, which is not installed\n")
    assert "`pip install 'mtpforge[plots]'`" in ran.err
