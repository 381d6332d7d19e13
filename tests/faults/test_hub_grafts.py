"""Grafts and merges of what the hub's own cache holds: links into its blobs, which stay as they were."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download
from publishing.grafted import around, check_index, digests, of_layer, tensors

import mtpforge
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError

LAYER = "model.layers.3.*"


def cached(hub, folder, name="org/target"):
    """The snapshot as `hf download` leaves it: names that lead to blobs."""
    hub.add(name, folder)
    (home,) = {Path(hf_hub_download(name, path.name)).parent for path in folder.iterdir()}
    return home


def blobs(snapshot):
    """Bytes and times of everything that the cache holds of a repository, and what its names lead to."""
    held = sorted(path for path in snapshot.parents[1].rglob("*") if path.is_file() or path.is_symlink())
    return [
        (
            path,
            path.is_symlink() and path.readlink(),
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).digest(),
        )
        for path in held
    ]


@pytest.mark.parametrize("link", ["hard", "sym"])
def test_graft_into_a_repository_leads_into_the_blobs_of_the_cache(hub, tinyglm, tmp_path, link):
    snapshot = cached(hub, tinyglm("awq-int4"))
    target, before = open_checkpoint("org/target"), blobs(snapshot)
    assert target.revision  # no folder
    assert (snapshot / "tokenizer.json").is_symlink()
    made = mtpforge.graft(tinyglm("fp8"), target, out=tmp_path / "graft", link=link)
    assert blobs(snapshot) == before
    assert made.report.ok
    assert made.document["target"]["id"] == f"org/target@{target.revision}"
    for path in made.path.glob("model-0*.safetensors"):
        assert path.samefile(snapshot / path.name)
        assert path.is_symlink() == (link == "sym")
        if link == "sym":
            assert path.readlink() == (snapshot / path.name).resolve()
    held = tensors(made.path)
    assert around(held) == around(tensors(tinyglm("awq-int4")))
    check_index(made.path)
    judged = mtpforge.verify(made.path, made.path, tinyglm("fp8"))
    assert judged.ok
    assert judged.facts["n_tensors"] == len(of_layer(held)) == 129


def test_merge_of_two_repositories_leads_into_their_blobs(hub, tinyglm, tmp_path):
    base, other = cached(hub, tinyglm("nvfp4")), cached(hub, tinyglm("bf16"), "org/other")
    before = blobs(base), blobs(other)
    made = mtpforge.merge("org/target", {LAYER: "org/other"}, out=tmp_path / "merged")
    assert (blobs(base), blobs(other)) == before
    held = tensors(made.path)
    assert digests(of_layer(held)) == digests(of_layer(tensors(other)))
    assert around(held) == around(tensors(base))
    assert (made.path / "model-00001-of-00002.safetensors").samefile(base / "model-00001-of-00002.safetensors")


def test_repository_that_the_cache_holds_in_part_is_refused_with_the_way_to_fetch_it(hub, tinyglm, tmp_path):
    snapshot = cached(hub, tinyglm("awq-int4"))
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MtpforgeError, match="is not on this machine as a whole") as caught:
        mtpforge.graft(tinyglm("fp8"), "org/target", out=tmp_path / "graft")
    assert caught.value.fix.startswith("`hf download org/target --revision ")
    assert not (tmp_path / "graft").exists()
