"""Layers whose bytes are not those of the document beside them: nothing is made of them."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtpforge
from mtpforge.durable import effects
from mtpforge.errors import MtpforgeError


def with_damage(folder, to):
    """A copy with 64 bytes in the middle of its weights overwritten."""
    shutil.copytree(folder, to)
    weights = max(to.glob("model*.safetensors"), key=lambda path: path.stat().st_size)
    raw = bytearray(weights.read_bytes())
    at = len(raw) // 2
    assert raw[at : at + 64] != b"\xff" * 64
    raw[at : at + 64] = b"\xff" * 64
    weights.write_bytes(raw)
    return to


@pytest.mark.parametrize("make", [mtpforge.graft, mtpforge.delta], ids=["graft", "delta"])
def test_draft_that_changed_since_it_was_built_is_not_made_into_anything(tinyglm, tmp_path, make):
    target = tinyglm("awq-int4")
    mtpforge.build(target, tinyglm("nvfp4"), out=tmp_path / "draft", check="off")
    damaged = with_damage(tmp_path / "draft", tmp_path / "damaged")
    with pytest.raises(MtpforgeError, match="1 tensor of the layer changed since it was made") as caught:
        make(damaged, target, out=tmp_path / "out")
    assert "mtpforge verify" in caught.value.fix
    assert not (tmp_path / "out").exists()
    make(tmp_path / "draft", target, out=tmp_path / "out")


def test_file_that_was_put_beside_the_weights_does_not_travel_and_is_not_published(tinyglm, tmp_path):
    target = tinyglm("awq-int4")
    mtpforge.build(target, tinyglm("nvfp4"), out=tmp_path / "draft", check="off")
    spoiled = shutil.copytree(tmp_path / "draft", tmp_path / "spoiled")
    save_file({"hidden_states": torch.zeros(2, 2)}, spoiled / "in.safetensors")
    for name, make in (("graft", mtpforge.graft), ("delta", mtpforge.delta)):
        for draft in ("draft", "spoiled"):
            make(tmp_path / draft, target, out=tmp_path / f"{name}-{draft}")
        of_clean, of_spoiled = (
            {
                file.name: load_file(file)
                for file in sorted((tmp_path / f"{name}-{draft}").glob("model-mtp*.safetensors"))
            }
            for draft in ("draft", "spoiled")
        )
        assert of_clean.keys() == of_spoiled.keys()
        for file, tensors in of_clean.items():
            assert tensors
            assert tensors.keys() == of_spoiled[file].keys()
            assert all(torch.equal(tensors[key], of_spoiled[file][key]) for key in tensors)
        assert not list((tmp_path / f"{name}-spoiled").glob("in.*"))
    with pytest.raises(MtpforgeError) as caught:
        mtpforge.push(spoiled, "org/name", target=target)
    assert "in.safetensors" in str(caught.value)


@pytest.mark.parametrize("of", ["draft", "graft"])
def test_nothing_is_built_of_a_layer_of_ours_that_changed(tinyglm, tmp_path, of):
    target = tinyglm("awq-int4")
    mtpforge.build(target, tinyglm("nvfp4"), out=tmp_path / "draft", check="off")
    if of == "graft":
        mtpforge.graft(tmp_path / "draft", target, out=tmp_path / "graft", link="copy")
    damaged = shutil.copytree(tmp_path / of, tmp_path / "damaged")
    weights = damaged / ("model-mtp.safetensors" if of == "graft" else "model.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(MtpforgeError, match="1 tensor of the draft changed since it was made") as caught:
        mtpforge.build(tinyglm("bf16"), damaged, out=tmp_path / "out", check="off")
    assert "mtpforge verify" in caught.value.fix
    assert not (tmp_path / "out").exists()
    mtpforge.build(tinyglm("bf16"), tmp_path / of, out=tmp_path / "out", check="off")


def test_a_damaged_layer_is_refused_before_the_target_is_copied(tinyglm, tmp_path, monkeypatch):
    target = tinyglm("awq-int4")
    mtpforge.build(target, tinyglm("nvfp4"), out=tmp_path / "draft", check="off")
    damaged = with_damage(tmp_path / "draft", tmp_path / "damaged")
    written, real = [], effects.put

    def put(fd, data, offset):
        written.append(len(data))
        real(fd, data, offset)

    monkeypatch.setattr(effects, "put", put)
    with pytest.raises(MtpforgeError, match="1 tensor of the layer changed since it was made"):
        mtpforge.graft(damaged, target, out=tmp_path / "out", link="copy")
    n_layer = (damaged / "model.safetensors").stat().st_size
    assert 0 < sum(written) <= n_layer
    written.clear()
    mtpforge.graft(tmp_path / "draft", target, out=tmp_path / "out", link="copy")
    assert sum(written) > n_layer + sum(file.stat().st_size for file in target.glob("*.safetensors"))


def test_layer_of_a_graft_that_changed_since_it_was_made_is_not_taken(tinyglm, tmp_path):
    mtpforge.graft(tinyglm("fp8"), tinyglm("bf16"), out=tmp_path / "graft", link="copy")
    taken = tmp_path / "graft" / "model-mtp.safetensors"
    raw = bytearray(taken.read_bytes())
    raw[-1] ^= 1
    taken.write_bytes(raw)
    with pytest.raises(MtpforgeError, match="1 tensor of the layer changed since it was made"):
        mtpforge.graft(tmp_path / "graft", tinyglm("awq-int4"), out=tmp_path / "other")
