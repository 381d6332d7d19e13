"""Outputs that --force must not touch: an input of the same build, a link, a folder that is no draft."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from drafts import digests

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint, open_scales
from mtpforge.errors import MtpforgeError
from mtpforge.planning import plan
from mtpforge.writing.preflight import preflight, refuse_output


@pytest.fixture(scope="module")
def extract(tinyglm, tmp_path_factory) -> Path:
    """A draft that can itself be a source: the layer as BF16."""
    folder = tmp_path_factory.mktemp("extract") / "layer"
    whole = open_checkpoint(str(tinyglm("bf16")))
    build(plan(whole, whole), {"source": whole, "target": whole}, folder, check="off", workers=1)
    return folder


@pytest.fixture
def sides(tinyglm, extract, tmp_path):
    shutil.copytree(extract, tmp_path / "home" / "keep")
    source, target = open_checkpoint(str(tmp_path / "home" / "keep")), open_checkpoint(str(tinyglm("awq-int4")))
    return {"source": source, "target": target}


@pytest.mark.parametrize(
    ("out", "what"),
    [
        ("home/keep", "the output is the source"),
        ("home/../home/keep/", "the output is the source"),
        ("other/keep", "the output is the source"),  # a folder that is reached through a link
        ("home", "the output would replace a folder that holds the source"),
        ("home/keep/draft", "the output lies in the folder of the source"),
    ],
)
def test_a_build_never_replaces_its_own_input(sides, tmp_path, out, what):
    (tmp_path / "other").symlink_to(tmp_path / "home")
    before = digests(tmp_path / "home" / "keep")
    decided = plan(**sides)
    for attempt in (
        lambda: build(decided, sides, tmp_path / out, force=True, check="off", workers=1),
        lambda: preflight(decided, sides, tmp_path / out, force=True),
    ):
        with pytest.raises(MtpforgeError) as refused:
            attempt()
        assert (refused.value.what, refused.value.code) == (what, 5)
    assert digests(tmp_path / "home" / "keep") == before
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["keep"]


def test_relative_output_is_compared_by_where_it_leads(sides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "home")
    with pytest.raises(MtpforgeError, match="the output is the source"):
        refuse_output(sides, Path("keep"))


def test_the_target_is_an_input_too(sides):
    with pytest.raises(MtpforgeError, match="the output lies in the folder of the target"):
        refuse_output(sides, Path(sides["target"].location) / "draft")


def test_a_file_of_scales_is_an_input_but_its_neighbours_are_not(sides, tmp_path):
    file = tmp_path / "draft" / "scales.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"")
    sides["scales"] = open_scales(str(file), sides["target"].config)
    refuse_output(sides, tmp_path / "draft" / "out")
    with pytest.raises(MtpforgeError, match="replace a folder that holds the file of activation scales"):
        refuse_output(sides, tmp_path / "draft")


def test_force_replaces_no_link(sides, extract, tmp_path):
    shutil.copytree(extract, tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(MtpforgeError) as refused:
        build(plan(**sides), sides, tmp_path / "link", force=True, check="off", workers=1)
    assert (refused.value.what, refused.value.code) == ("the output is a link", 5)
    assert refused.value.why.startswith("it leads to `real`")
    assert (tmp_path / "link").is_symlink()


def test_link_that_leads_nowhere_and_an_empty_folder_are_called_so(sides, tmp_path):
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "empty").mkdir()
    said = {}
    for name in ("link", "empty"):
        with pytest.raises(MtpforgeError) as refused:
            preflight(plan(**sides), sides, tmp_path / name)
        said[name] = (refused.value.what, refused.value.why)
    place = "the draft would take the place of the link itself"
    assert said["link"] == ("the output is a link", f"it leads to `gone`, where nothing is; {place}")
    assert said["empty"] == ("the output exists already", "it is an empty folder, whose place the draft would take")
    preflight(plan(**sides), sides, tmp_path / "empty", force=True)


@pytest.mark.parametrize("force", [False, True])
def test_folder_that_is_no_draft_is_refused_without_a_detour_over_force(sides, tmp_path, force):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(MtpforgeError) as refused:
        preflight(plan(**sides), sides, tmp_path / "there", force=force)
    assert refused.value.what == "the output exists and is no draft"
    assert refused.value.why == "only folders that hold mtpforge.json are replaced"
