"""A hub repository: the same tensors as the folder it serves, by few bytes, once."""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading

import pytest
from faults.hub_server import Fault, commit_of, serving

from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.folder import open_folder
from mtpforge.checkpoint.hub import fetching
from mtpforge.checkpoint.hub.repository import open_hub
from mtpforge.errors import MtpforgeError

REPO = "org/tiny-GLM"
LAYER = "model.layers.3."
LAYOUTS = ("bf16", "fp8", "nvfp4", "int4-int8mix")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as server:
        yield server


def layer_of(checkpoint):
    return checkpoint.locate(name for name in checkpoint.names if name.startswith(LAYER))


def contents(checkpoint, refs):
    found = {}
    for name, ref in refs.items():
        found[name] = bytearray(ref.stop - ref.start)
        checkpoint.read(ref, memoryview(found[name]))
    return found


def scattered(folder, to, n_files=4):
    """The same checkpoint with its tensors dealt to other files, one to each in turn, by the bytes of the files."""
    to.mkdir()
    shutil.copy(folder / "config.json", to)
    source = open_folder(folder)
    refs = source.locate(source.names)
    weight_map = {}
    for i in range(n_files):
        file, entries, data = f"part-{i}.safetensors", {}, b""
        for name in sorted(refs)[i::n_files]:
            raw = contents(source, {name: refs[name]})[name]
            spec = refs[name].spec
            offsets = [len(data), len(data) + len(raw)]
            entries[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": offsets}
            data += raw
            weight_map[name] = file
        head = json.dumps(entries).encode()
        (to / file).write_bytes(struct.pack("<Q", len(head)) + head + data)
    (to / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return to


def header_bytes(path):
    return 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_repository_holds_what_its_folder_holds(hub, tinyglm, layout):
    commit = hub.add(REPO, tinyglm(layout))
    remote, local = open_hub(REPO, None, offline=False), open_folder(tinyglm(layout))
    assert (remote.config, remote.quantization, remote.names) == (local.config, local.quantization, local.names)
    assert (remote.label, remote.location, remote.revision) == (REPO, REPO, commit)
    assert remote.identity == f"{REPO}@{commit}"
    refs = layer_of(remote)
    assert refs == layer_of(local)
    remote.fetch(refs.values())
    assert contents(remote, refs) == contents(local, refs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_headers_and_wanted_bytes_are_fetched(hub, tinyglm, tmp_path, layout):
    folder = scattered(tinyglm(layout), tmp_path / "scattered")
    hub.add(REPO, folder)
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    headers = sum(header_bytes(folder / file) for file in {ref.file for ref in refs.values()})
    assert hub.sent["range"] == headers
    needed = sum(ref.stop - ref.start for ref in refs.values())
    promised = remote.missing_bytes(refs.values())
    remote.fetch(refs.values())
    fetched = hub.sent["range"] - headers
    assert fetched == promised
    assert needed <= fetched <= 1.02 * needed
    assert hub.sent["whole"] == 0
    assert remote.missing_bytes(refs.values()) == 0
    local = open_folder(folder)
    assert contents(remote, refs) == contents(local, layer_of(local))


def test_nothing_is_fetched_twice_by_a_later_process(hub, tinyglm):
    hub.add(REPO, tinyglm("bf16"))
    first = open_hub(REPO, None, offline=False)
    refs = layer_of(first)
    first.fetch(refs.values())
    hub.forget()
    second = open_hub(REPO, None, offline=False)
    second.fetch(layer_of(second).values())
    assert [request.kind for request in hub.requests] == ["api"]
    hub.forget()
    third = open_hub(REPO, first.revision, offline=False)  # a commit cannot move: nothing to ask
    third.fetch(layer_of(third).values())
    assert not hub.requests
    assert contents(third, refs) == contents(first, refs)


def test_a_branch_that_moves_does_not_move_an_open_checkpoint(hub, tinyglm):
    commit = hub.add(REPO, tinyglm("bf16"))
    remote = open_hub(REPO, "main", offline=False)
    moved = hub.add(REPO, tinyglm("fp8"))
    refs = layer_of(remote)
    remote.fetch(refs.values())
    local = open_folder(tinyglm("bf16"))
    assert contents(remote, refs) == contents(local, layer_of(local))
    assert {r.path.split("/")[4] for r in hub.requests if "/resolve/" in r.path} == {commit}
    assert open_hub(REPO, "main", offline=False).revision == moved
    assert open_hub(REPO, commit, offline=False).revision == commit


def test_a_shard_whole_in_the_hub_cache_is_used_without_a_request(hub, tinyglm):
    from huggingface_hub import hf_hub_download

    folder = tinyglm("bf16")
    commit = hub.add(REPO, folder)
    for path in folder.glob("*.safetensors"):
        hf_hub_download(REPO, path.name, revision=commit)
    remote = open_hub(REPO, None, offline=False)
    hub.forget()
    refs = layer_of(remote)
    assert remote.missing_bytes(refs.values()) == 0
    remote.fetch(refs.values())
    assert hub.sent["range"] + hub.sent["whole"] + hub.sent["head"] == 0
    assert contents(remote, refs) == contents(open_folder(folder), refs)
    file = next(iter(refs.values())).file
    assert remote.local_file(file).read_bytes() == (folder / file).read_bytes()


def test_the_cached_file_has_the_offsets_of_the_remote_one(hub, tinyglm):
    hub.add(REPO, tinyglm("fp8"))
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    remote.fetch(refs.values())
    for ref in refs.values():
        original = (tinyglm("fp8") / ref.file).read_bytes()
        copy = remote.local_file(ref.file).read_bytes()
        assert len(copy) == len(original)
        assert copy[ref.start : ref.stop] == original[ref.start : ref.stop]


def test_a_single_file_without_an_index_is_a_checkpoint(hub, tinyglm, tmp_path):
    folder = scattered(tinyglm("bf16"), tmp_path / "single", n_files=1)
    (folder / "model.safetensors.index.json").unlink()
    hub.add(REPO, folder)
    remote, local = open_hub(REPO, None, offline=False), open_folder(folder)
    assert remote.has_headers
    assert remote.names == local.names
    assert layer_of(remote) == layer_of(local)


def test_a_config_alone_is_a_checkpoint_without_tensors(hub, tinyglm, tmp_path):
    shutil.copy(tinyglm("fp8") / "config.json", tmp_path)
    hub.add(REPO, tmp_path)
    remote = open_hub(REPO, None, offline=False)
    assert not remote.has_headers
    assert not remote.names
    assert remote.strays(LAYER) == ()
    assert remote.quantization["quant_method"] == "fp8"


def test_strays_are_found_in_files_that_the_index_does_not_name(hub, tinyglm, tmp_path):
    folder = scattered(tinyglm("bf16"), tmp_path / "strays")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    kept = {name: file for name, file in index.items() if file != "part-3.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": kept}))
    hub.add(REPO, folder)
    remote = open_hub(REPO, None, offline=False)
    expected = {name for name, file in index.items() if file == "part-3.safetensors" and name.startswith(LAYER)}
    assert expected
    assert {(s.name, s.files, s.indexed) for s in remote.strays(LAYER)} == {
        (name, ("part-3.safetensors",), "") for name in expected
    }
    assert remote.strays(LAYER) == open_folder(folder).strays(LAYER)


def test_licences_and_base_model_come_along(hub, tinyglm, tmp_path):
    shutil.copytree(tinyglm("fp8"), tmp_path / "copy")
    (tmp_path / "copy" / "LICENSE.md").write_text("MIT")
    (tmp_path / "copy" / "NOTICE").write_text("by us")
    (tmp_path / "copy" / "README.md").write_text("---\nbase_model:\n- zai-org/GLM-5.2\n---\n# Card\n")
    hub.add(REPO, tmp_path / "copy")
    remote = open_hub(REPO, None, offline=False)
    assert remote.documents() == {"LICENSE.md": b"MIT", "NOTICE": b"by us"}
    assert remote.base_models() == ("zai-org/GLM-5.2",)


def test_links_to_another_host_get_no_token_and_are_renewed(hub, tinyglm, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.redirects = True
    hub.add(REPO, tinyglm("bf16"))
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    hub.link += 1  # the links that were given for the headers expire
    remote.fetch(refs.values())
    assert contents(remote, refs) == contents(open_folder(tinyglm("bf16")), refs)
    signed = [request for request in hub.requests if request.path.startswith("/signed-")]
    assert {request.path.split("/")[1] for request in signed} == {"signed-1", "signed-2"}
    assert {request.authorization for request in signed} == {""}
    assert {r.authorization for r in hub.requests if not r.path.startswith("/signed-")} == {"Bearer hf_secret"}


def test_no_token_is_written_anywhere(hub, tinyglm, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add(REPO, tinyglm("bf16"))
    remote = open_hub(REPO, None, offline=False)
    remote.fetch(layer_of(remote).values())
    written = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert any(path.suffix == ".ranges" for path in written)
    assert not [path for path in written if b"hf_secret" in path.read_bytes() or "hf_secret" in str(path)]


def test_the_cache_lies_where_the_environment_says(hub, tinyglm, tmp_path, monkeypatch):
    commit = hub.add(REPO, tinyglm("bf16"))
    remote = open_hub(REPO, None, offline=False)
    file = "model-00001-of-00003.safetensors"
    assert remote.local_file(file) == tmp_path / "home/mtpforge/ranges/org--tiny-GLM" / commit / file
    monkeypatch.setenv("MTPFORGE_CACHE", str(tmp_path / "elsewhere"))
    remote = open_hub(REPO, None, offline=False)
    assert remote.local_file(file) == tmp_path / "elsewhere/ranges/org--tiny-GLM" / commit / file


def test_progress_ends_at_what_was_promised(hub, tinyglm, monkeypatch):
    monkeypatch.setattr(fetching, "PART_BYTES", 50_000)
    hub.add(REPO, tinyglm("bf16"))
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    promised, seen = remote.missing_bytes(refs.values()), []
    remote.fetch(refs.values(), seen.append)
    assert (seen[-1].phase, seen[-1].done, seen[-1].total) == ("fetch", promised, promised)
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_two_fetches_at_once_share_the_work(hub, tinyglm):
    hub.add(REPO, tinyglm("bf16"))
    checkpoints = [open_hub(REPO, None, offline=False) for _ in range(3)]
    refs = layer_of(checkpoints[0])
    promised = checkpoints[0].missing_bytes(refs.values())
    hub.forget()
    threads = [threading.Thread(target=c.fetch, args=(list(refs.values()),)) for c in checkpoints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.sent["range"] == promised
    for checkpoint in checkpoints:
        assert contents(checkpoint, refs) == contents(open_folder(tinyglm("bf16")), refs)


@pytest.mark.parametrize("damage", ["gone", "short", "journal"])
def test_a_damaged_cache_file_is_fetched_again(hub, tinyglm, damage):
    hub.add(REPO, tinyglm("bf16"))
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    remote.fetch(refs.values())
    path = remote.local_file(next(iter(refs.values())).file)
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        os.truncate(path, 5000)
    else:
        path.with_name(f"{path.name}.ranges").write_bytes(b"\0" * 200)
    again = open_hub(REPO, None, offline=False)
    assert again.missing_bytes(refs.values()) > 0
    with pytest.raises(MtpforgeError, match="is not complete here"):
        contents(again, refs)
    again.fetch(refs.values())
    assert contents(again, refs) == contents(open_folder(tinyglm("bf16")), refs)


def test_bytes_of_another_etag_are_said_and_dropped(hub, tinyglm, tmp_path):
    shutil.copytree(tinyglm("bf16"), tmp_path / "copy")
    commit = hub.add(REPO, tmp_path / "copy")
    first = open_hub(REPO, None, offline=False)
    refs = layer_of(first)
    ref = max(refs.values(), key=lambda r: r.stop - r.start)
    first.fetch([r for r in refs.values() if r != ref])
    path = tmp_path / "copy" / ref.file  # a server that changes a file at the same commit
    raw = bytearray(path.read_bytes())
    raw[header_bytes(path) :] = bytes(b ^ 255 for b in raw[header_bytes(path) :])
    path.write_bytes(raw)
    second = open_hub(REPO, commit, offline=False)
    with pytest.raises(MtpforgeError, match="changed on the hub"):  # its header, which is here, may be another one too
        second.fetch(refs.values())
    third = open_hub(REPO, commit, offline=False)
    third.fetch(layer_of(third).values())
    assert bytes(contents(third, {"x": ref})["x"]) == raw[ref.start : ref.stop]
    assert contents(third, refs) == contents(open_folder(tmp_path / "copy"), refs)


def test_tensors_and_files_that_are_not_there_are_named(hub, tinyglm, tmp_path):
    shutil.copytree(tinyglm("bf16"), tmp_path / "copy")
    gone = json.loads((tmp_path / "copy/model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    (tmp_path / "copy" / gone).unlink()
    commit = hub.add(REPO, tmp_path / "copy")
    remote = open_hub(REPO, None, offline=False)
    with pytest.raises(MtpforgeError) as absent:
        remote.locate(["model.layers.9.x"])
    assert str(absent.value) == (
        "error: `org/tiny-GLM` has no tensor `model.layers.9.x`\n"
        f"where: org/tiny-GLM@{commit}\n"
        "cause: model.safetensors.index.json does not name it\n"
        " hint: `mtpforge inspect org/tiny-GLM` shows what the checkpoint holds"
    )
    with pytest.raises(MtpforgeError) as missing:
        remote.locate(["lm_head.weight"])
    assert str(missing.value) == (
        f"error: `{gone}` is not in org/tiny-GLM\n"
        f"where: org/tiny-GLM@{commit}, model.safetensors.index.json\n"
        "cause: the index says that it holds `lm_head.weight`\n"
        " hint: give another revision: `org/name@revision`"
    )
    assert (absent.value.code, missing.value.code) == (3, 3)


def test_an_index_that_points_outside_is_refused(hub, tinyglm, tmp_path):
    shutil.copytree(tinyglm("bf16"), tmp_path / "copy")
    index = {"weight_map": {f"{LAYER}x": "../../../secret.safetensors"}}
    (tmp_path / "copy/model.safetensors.index.json").write_text(json.dumps(index))
    hub.add(REPO, tmp_path / "copy")
    remote = open_hub(REPO, None, offline=False)
    with pytest.raises(MtpforgeError, match=r"names `\.\./\.\./\.\./secret\.safetensors`, which is no"):
        remote.locate([f"{LAYER}x"])


@pytest.mark.parametrize("raw", [b"", b"1234", struct.pack("<Q", 1 << 40), struct.pack("<Q", 90) + b"{}"])
def test_a_header_that_cannot_be_is_refused(hub, tinyglm, tmp_path, raw):
    shutil.copytree(tinyglm("bf16"), tmp_path / "copy")
    for path in (tmp_path / "copy").glob("*.safetensors"):
        path.write_bytes(raw)
    hub.add(REPO, tmp_path / "copy")
    with pytest.raises(MtpforgeError, match="is not a valid safetensors file"):
        layer_of(open_hub(REPO, None, offline=False))


def test_open_checkpoint_takes_hub_ids(hub, tinyglm):
    commit = hub.add(REPO, tinyglm("bf16"))
    assert open_checkpoint(f"{REPO}@{commit}").label == f"{REPO}@{commit}"
    assert commit == commit_of(f"{REPO} 0")


def test_small_files_survive_one_fault(hub, tinyglm):
    hub.add(REPO, tinyglm("bf16"))
    hub.faults = [Fault("status", on="api"), Fault("status", on="head", status=503)]
    assert open_hub(REPO, None, offline=False).config["model_type"] == "glm_moe_dsa"
