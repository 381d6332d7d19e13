"""The hub's own cache as a folder: whole, or said to be not."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.hub_server import serving
from huggingface_hub import hf_hub_download

import mtpforge
from mtpforge import errors
from mtpforge.checkpoint.hub.repository import open_hub
from mtpforge.checkpoint.hub.snapshots import snapshot
from mtpforge.errors import MtpforgeError

REPO = "org/tiny-GLM"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def remote(hub, tinyglm):
    """A target of which only what was looked at is on this machine."""
    hub.add(REPO, tinyglm("awq-int4"))
    return open_hub(REPO, None, offline=False)


def fetched(remote, folder, *, but=""):
    """The repository in the hub's cache, as its own client lays it out, file by file."""
    names = [entry.name for entry in sorted(folder.iterdir()) if entry.name != but]
    return {name: hf_hub_download(REPO, name, revision=remote.revision) for name in names}


def test_repository_that_is_not_here_is_refused_with_the_command_that_fetches_it(remote, hub):
    hub.forget()
    with pytest.raises(MtpforgeError) as refused:
        snapshot(remote)
    assert refused.value.code == errors.MACHINE
    assert f"`hf download {REPO} --revision {remote.revision}`" in refused.value.fix


def test_missing_weights_are_counted_and_named(remote, tinyglm):
    fetched(remote, tinyglm("awq-int4"), but="model-00002-of-00002.safetensors")
    with pytest.raises(MtpforgeError) as refused:
        snapshot(remote)
    assert refused.value.why == "weight files that are missing: 1, the first is model-00002-of-00002.safetensors"


def test_overlay_of_a_repository_leads_to_the_files_of_the_cache(remote, tinyglm, tmp_path):
    files = fetched(remote, tinyglm("awq-int4"))
    made = mtpforge.build(remote, tinyglm("nvfp4"), out=tmp_path / "draft", scheme="nvfp4", check="off")
    argv = mtpforge.serve_command(made.path, remote, overlay=tmp_path / "told")
    assert argv[:3] == ["vllm", "serve", str(tmp_path / "told")]
    assert "--revision" not in argv
    weights = tmp_path / "told" / "model-00001-of-00002.safetensors"
    assert weights.is_symlink()
    assert "blobs" in weights.readlink().parts
    assert weights.read_bytes() == (tinyglm("awq-int4") / weights.name).read_bytes()
    assert snapshot(remote) / weights.name == Path(files[weights.name])
