"""Folders that hold what no checkpoint holds: links in circles and out, pipes, folders, names that are no text."""

from __future__ import annotations

import json
import os
import sys

import pytest
from fuzz import tiny
from fuzz.bounds import outcome

from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.inspecting import inspect
from mtpforge.report import Report

FILES = [
    "model.safetensors",
    "config.json",
    "model.safetensors.index.json",
    "README.md",
    "hf_quant_config.json",
    "LICENSE",
]


@pytest.fixture
def folder(tmp_path):
    return tiny.folder(tmp_path / "source", "bf16")


def use(path):
    """Everything that looks at the files of a folder."""
    opened = open_checkpoint(str(path))
    found = inspect(opened)
    assert None not in (opened.base_models(), opened.documents(), opened.quantization, opened.identity)
    return found


def circle(path):
    path.symlink_to(path.name)


def pipe(path):
    os.mkfifo(path)


def out(path):
    path.symlink_to("/etc/passwd")


def nowhere(path):
    path.symlink_to("is-not-here")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "odd", [circle, pipe, out, nowhere, lambda path: path.mkdir()], ids=["circle", "pipe", "out", "nowhere", "folder"]
)
def test_what_is_no_file_is_never_read(folder, name, odd):
    (folder / name).unlink(missing_ok=True)
    odd(folder / name)
    told = outcome(lambda: use(folder))
    assert isinstance(told, MtpforgeError | Report)
    assert "root:" not in str(told)  # not a word of what lies outside
    if odd is out and name == "LICENSE":  # this one would be copied
        assert "leads out of the checkpoint" in str(told)


@pytest.mark.parametrize(
    "odd", [circle, pipe, nowhere, lambda path: path.mkdir()], ids=["circle", "pipe", "nowhere", "folder"]
)
def test_what_is_no_file_beside_the_weights_is_passed_over(folder, odd):
    odd(folder / "z.safetensors")
    assert isinstance(outcome(lambda: use(folder)), Report)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_no_text_is_escaped(folder):
    (folder / "model.safetensors").rename(folder / os.fsdecode(b"\xff\x1b[2J.safetensors"))
    (folder / "LICENSE\x1b[2J").write_text("x" * 2_000_000)
    assert "\\x1b[2J" in str(outcome(lambda: use(folder)))


def test_a_path_longer_than_any_file_system_takes_is_absent(folder):
    index = {"weight_map": {f"{tiny.PREFIX}enorm.weight": "sub/" * 900 + "x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert isinstance(outcome(lambda: use(folder)), MtpforgeError | Report)
