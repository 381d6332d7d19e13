"""Where a page or a picture may lie: asked before anything long begins, and never in somebody's checkpoint."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

import mtpforge
from mtpforge.errors import MtpforgeError
from mtpforge.report import Report
from mtpforge.reporting import drawing, writing


@contextmanager
def no_longer_than(n_bytes):
    """Files of this process end there, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("place", ["/proc/p", "a" * 240, "b" * 300 + "/p"])
@pytest.mark.parametrize(("refuse", "suffix"), [(writing.refuse, ".html"), (drawing.refuse, ".png")])
def test_place_that_cannot_be_written_is_found_before_there_is_anything_to_write(tmp_path, refuse, suffix, place):
    path = tmp_path / f"{place}{suffix}"
    with pytest.raises(OSError):  # noqa: PT011 -- each has its own number
        writing.files.replace(path, b"")
    with pytest.raises(MtpforgeError, match="cannot be written there") as caught:
        refuse(path)
    assert caught.value.code == 5
    assert caught.value.why
    assert not list(tmp_path.iterdir())


def test_full_disk_is_found_before_there_is_anything_to_write(tmp_path):
    with no_longer_than(10_000), pytest.raises(MtpforgeError, match="the disk is full: the report could not") as caught:
        writing.refuse(tmp_path / "new" / "p.html")
    assert caught.value.code == 5
    assert not list(tmp_path.iterdir())
    writing.refuse(tmp_path / "new" / "p.html")
    assert not list(tmp_path.iterdir())


def test_folder_that_nobody_may_write_to_is_told_by_its_name(tmp_path, monkeypatch):
    def forbidden(*, dir):  # noqa: A002 -- tempfile's own name
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(dir / "tmp1234"))

    monkeypatch.setattr(tempfile, "TemporaryFile", forbidden)
    with pytest.raises(MtpforgeError) as caught:
        writing.refuse(tmp_path / "p.html")
    assert caught.value.why == f"Permission denied ({tmp_path})"


def test_picture_s_folder_that_is_missing_is_told_first(tmp_path):
    with pytest.raises(MtpforgeError) as caught:
        drawing.refuse(tmp_path / "new" / "p.png")
    assert caught.value.why == f"there is no folder `{tmp_path / 'new'}`"


@pytest.mark.parametrize("place", ["awq/p.html", "awq/below/p.html", "link/p.html", "awq/../awq/p.html", "p.html"])
def test_page_is_never_put_into_a_checkpoint(tmp_path, monkeypatch, tinyglm, place):
    model = tmp_path / "awq"
    model.mkdir()
    (model / "config.json").write_bytes((tinyglm("awq-int4") / "config.json").read_bytes())
    (tmp_path / "link").symlink_to("awq")
    monkeypatch.chdir(model if place == "p.html" else tmp_path)
    for refused in (
        lambda: mtpforge.write_page(Report("verify", ()), place),
        lambda: drawing.refuse_inside(Path(place).with_suffix(".png"), [model]),
    ):
        with pytest.raises(MtpforgeError, match="would lie in the folder of a checkpoint") as caught:
            refused()
        assert caught.value.code == 5
    assert [file.name for file in model.iterdir()] == ["config.json"]


@pytest.mark.parametrize("text", ['{"name": "a web site"}', "no JSON", "[]"])
def test_config_of_something_else_makes_no_checkpoint(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "inputs.safetensors").write_bytes(b"")
    mtpforge.write_page(Report("verify", ()), tmp_path / "p.html")
    assert (tmp_path / "p.html").is_file()
