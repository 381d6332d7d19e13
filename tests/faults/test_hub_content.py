"""Bytes of the right number and the wrong kind from the hub: found, fetched again, or said."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct

import pytest
from faults.hub_reading import REPO, contents, layer_of, opened, refusal, truth
from faults.hub_server import Fault

from mtpforge.checkpoint.folder import open_folder
from mtpforge.checkpoint.hub import agreement, cache, fetching, transfer
from mtpforge.checkpoint.hub.repository import open_hub
from mtpforge.cli import main

FILE = "model.safetensors"


@pytest.fixture(autouse=True)
def _same_samples(monkeypatch):
    monkeypatch.setattr(agreement, "RANDOM", random.Random(1))


@pytest.fixture
def one_file(tinyglm, tmp_path):
    """The tiny model's layer as a folder of one file, that a fetch of all tensors brings whole."""
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(tinyglm("bf16") / "config.json", folder)
    source = open_folder(tinyglm("bf16"))
    entries, data = {}, b""
    for name, raw in contents(source, layer_of(source)).items():
        spec = layer_of(source)[name].spec
        offsets = [len(data), len(data) + len(raw)]
        entries[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": offsets}
        data += bytes(raw)
    head = json.dumps(entries).encode()
    (folder / FILE).write_bytes(struct.pack("<Q", len(head)) + head + data)
    return folder


# Ranges of a file


def test_a_good_connection_costs_at_most_a_hundredth_or_64_kib(hub, tinyglm):
    remote, refs = opened(hub, tinyglm)
    remote.fetch(refs.values())
    assert 0 < hub.sent["again"] <= 64 << 10
    assert remote.downloaded.again_bytes == hub.sent["again"]
    hub.forget()
    remote.fetch(refs.values())
    assert not hub.requests  # nothing is compared twice


@pytest.mark.parametrize("redirects", [False, True])
def test_damaged_ranges_of_the_right_length_are_fetched_again(hub, tinyglm, redirects):
    hub.redirects = redirects
    hub.faults = [Fault("corrupt", times=99)]
    remote, refs = opened(hub, tinyglm)
    remote.fetch(refs.values())
    assert hub.faults[0].times < 99
    assert contents(remote, refs) == truth(tinyglm)
    assert hub.sent["again"] > hub.sent["range"]  # each piece until two transfers agreed
    assert remote.downloaded.again_bytes == hub.sent["again"]
    assert remote.downloaded.n_bytes == remote_header_bytes(refs, tinyglm) + hub.sent["range"]


def remote_header_bytes(refs, tinyglm):
    files = {tinyglm("bf16") / ref.file for ref in refs.values()}
    return sum(8 + struct.unpack("<Q", file.read_bytes()[:8])[0] for file in files)


def test_without_the_second_look_damage_would_be_used(hub, tinyglm, monkeypatch):
    """That the fault above is one."""
    monkeypatch.setattr(agreement, "confirm", lambda *_: 0)
    hub.faults = [Fault("corrupt", times=99)]
    remote, refs = opened(hub, tinyglm)
    remote.fetch(refs.values())
    assert contents(remote, refs) != truth(tinyglm)


def test_a_damaged_second_transfer_is_outvoted(hub, tinyglm):
    hub.faults = [Fault("corrupt", on="again", times=2)]
    remote, refs = opened(hub, tinyglm)
    remote.fetch(refs.values())
    assert hub.faults[0].times == 0
    assert contents(remote, refs) == truth(tinyglm)


def test_a_connection_that_never_agrees_with_itself_is_said_and_its_bytes_dropped(hub, tinyglm, monkeypatch):
    monkeypatch.setattr(agreement, "TRANSFERS", 3)
    remote, refs = opened(hub, tinyglm)
    ref = max(refs.values(), key=lambda r: r.stop - r.start)
    promised = remote.missing_bytes([ref])
    hub.faults = [Fault("corrupt", times=999), Fault("corrupt", on="again", times=998)]
    message = refusal(remote.fetch, [ref])
    n_bytes = promised + remote_header_bytes({"": ref}, tinyglm)
    assert message == (
        "error: the connection changes the bytes that it carries\n"
        f"where: {REPO}@{remote.revision}, {ref.file}\n"
        f"cause: {n_bytes:,} bytes came differently in each of 3 transfers\n"
        " hint: try without the proxy or mirror in between (`HF_ENDPOINT`, HTTPS_PROXY), or from another network; "
        "what cannot be trusted was dropped"
    )
    hub.faults = []
    again = open_hub(REPO, None, offline=False)
    assert again.missing_bytes([ref]) == promised
    again.fetch([ref])
    assert contents(again, {ref.name: ref}) == {ref.name: truth(tinyglm)[ref.name]}


def test_tensors_are_not_read_by_a_header_that_came_damaged(hub, tinyglm, monkeypatch):
    """Two tensors of one shape change places: no parser can see that."""
    hub.add(REPO, tinyglm("bf16"))
    swapped, real = [], transfer.Remote.chunks

    def swapping(remote, file, part, *, again=False):
        for chunk in real(remote, file, part, again=again):
            if b"mlp.experts.0.gate_proj.weight" in chunk and not again:
                swapped.append(file)
                chunk = chunk.replace(b"experts.0.gate_proj", b"experts.0.GATE_proj")  # noqa: PLW2901
                chunk = chunk.replace(b"experts.1.gate_proj", b"experts.0.gate_proj")  # noqa: PLW2901
                chunk = chunk.replace(b"experts.0.GATE_proj", b"experts.1.gate_proj")  # noqa: PLW2901
            yield chunk

    monkeypatch.setattr(transfer.Remote, "chunks", swapping)
    monkeypatch.setattr(agreement, "FLOOR_BYTES", 1 << 30)  # everything is sampled
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    assert swapped
    assert {n: r.start for n, r in refs.items()} != {
        n: r.start for n, r in layer_of(open_folder(tinyglm("bf16"))).items()
    }
    message = refusal(remote.fetch, refs.values())
    assert message == (
        "error: the header of a file came damaged\n"
        f"where: {remote.local_file(swapped[0])}\n"
        "cause: a second transfer brought other bytes, until two agreed\n"
        " hint: run this again: what was fetched is kept"
    )
    again = open_hub(REPO, None, offline=False)
    found = layer_of(again)
    again.fetch(found.values())
    assert contents(again, found) == truth(tinyglm)


def test_what_a_killed_process_left_uncompared_is_compared_by_the_next(hub, tinyglm, monkeypatch):
    hub.faults = [Fault("corrupt", times=99)]
    remote, refs = opened(hub, tinyglm)
    with monkeypatch.context() as dying:
        dying.setattr(agreement, "confirm", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            remote.fetch(refs.values())
    assert remote.missing_bytes(refs.values()) == 0
    hub.faults = []
    hub.forget()
    open_hub(REPO, None, offline=True).fetch(refs.values())
    assert not hub.requests
    again = open_hub(REPO, None, offline=False)
    again.fetch(layer_of(again).values())
    assert hub.sent["range"] == 0
    assert hub.sent["again"] > 0
    assert contents(again, refs) == truth(tinyglm)


def test_a_second_transfer_asks_past_caches(hub, tinyglm, monkeypatch):
    asked = []
    real = transfer.Remote.chunks
    monkeypatch.setattr(transfer.Remote, "chunks", lambda *a, **k: asked.append(k.get("again", False)) or real(*a, **k))
    remote, refs = opened(hub, tinyglm)
    remote.fetch(refs.values())
    assert sum(asked) == len([r for r in hub.requests if r.kind == "again"]) > 0


def test_a_build_says_what_it_fetched_twice(hub, tinyglm, tmp_path, capfd):
    hub.add(REPO, tinyglm("bf16"))
    build = ["build", "--source", REPO, "--target", str(tinyglm("awq-int4")), "--check", "off"]
    assert main([*build, "-o", str(tmp_path / "a"), "--json"]) == 0
    downloaded = json.loads(capfd.readouterr().out)["downloaded"]
    assert downloaded == {"n_bytes": hub.sent["range"], "again_bytes": hub.sent["again"]}
    assert downloaded["again_bytes"] > 0
    assert main([*build, "-o", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["downloaded"] == {"n_bytes": 0, "again_bytes": 0}
    shutil.rmtree(cache.home())
    assert main([*build, "-o", str(tmp_path / "c"), "-v"]) == 0
    assert " a second time to compare\n" in capfd.readouterr().out


# A whole file


def test_a_whole_file_is_hashed_and_nothing_fetched_twice(hub, one_file, tinyglm):
    hub.add(REPO, one_file)
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    remote.fetch(refs.values())
    assert hub.sent["range"] == (one_file / FILE).stat().st_size
    assert hub.sent["again"] == 0
    assert contents(remote, refs) == truth(tinyglm)


@pytest.mark.parametrize("skip", [0, 3])
def test_one_damaged_part_of_a_whole_file_is_found_by_its_hash(hub, one_file, tinyglm, monkeypatch, skip):
    monkeypatch.setattr(fetching, "PART_BYTES", 100_000)
    hub.add(REPO, one_file)
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    hub.faults = [Fault("corrupt", skip=skip)]
    remote.fetch(refs.values())
    assert hub.faults[0].times == 0
    assert contents(remote, refs) == truth(tinyglm)


def test_a_whole_file_with_another_hash_is_said_with_both_hashes(hub, one_file):
    commit = hub.add(REPO, one_file)
    named, real = "ab" * 32, hashlib.sha256((one_file / FILE).read_bytes()).hexdigest()
    hub.etags[FILE] = named
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    assert refusal(remote.fetch, refs.values()) == (
        "error: a file does not have the hash that the hub names\n"
        f"where: {REPO}@{commit}, {FILE}\n"
        f"cause: the hub says {named}, what came twice has {real}\n"
        " hint: try without the proxy or mirror in between (`HF_ENDPOINT`, HTTPS_PROXY), or from another network; "
        "what cannot be trusted was dropped"
    )
    assert hub.sent["again"] == (one_file / FILE).stat().st_size  # once
    assert not cache.RangeFile(remote.local_file(FILE)).held


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_small_file_that_came_damaged_is_fetched_again(hub, tinyglm, name):
    hub.faults = [Fault("corrupt", on="small", skip=0 if name == "config.json" else 1)]
    hub.add(REPO, tinyglm("bf16"))
    remote = open_hub(REPO, None, offline=False)
    assert remote.names == open_folder(tinyglm("bf16")).names
    assert remote.config == open_folder(tinyglm("bf16")).config
    assert hub.faults[0].times == 0


def test_a_small_file_that_stays_damaged_is_said(hub, tinyglm):
    hub.faults = [Fault("corrupt", on="small", times=99)]
    commit = hub.add(REPO, tinyglm("bf16"))
    message = refusal(open_hub, REPO, None, offline=False)
    assert message.startswith(
        "error: a file does not have the hash that the hub names\n"
        f"where: {REPO}@{commit}, config.json\n"
        "cause: the hub says "
    )
    assert len([r for r in hub.requests if r.kind == "small"]) == 2


# A file that changes


@pytest.mark.parametrize("redirects", [False, True])
@pytest.mark.parametrize("skip", [0, 2])
def test_a_file_that_changes_between_two_ranges_is_said_and_nothing_mixed(hub, one_file, monkeypatch, redirects, skip):
    monkeypatch.setattr(fetching, "PART_BYTES", 100_000)
    monkeypatch.setattr(fetching, "CONNECTIONS", 1)
    hub.redirects = redirects
    hub.add(REPO, one_file)
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    before = hashlib.sha256((one_file / FILE).read_bytes()).hexdigest()
    hub.faults = [Fault("rewrite", skip=skip)]
    message = refusal(remote.fetch, refs.values())
    after = hashlib.sha256((one_file / FILE).read_bytes()).hexdigest()
    assert before != after
    assert message == (
        "error: a file changed on the hub while it was read\n"
        f"where: {REPO}@{remote.revision}, {FILE}\n"
        f"cause: a commit should not change, but its etag was `{before}` and is now `{after}`\n"
        " hint: run this again: it starts over with the new version"
    )
    assert not cache.RangeFile(remote.local_file(FILE)).held


def test_a_file_that_changes_before_its_first_range_is_said(hub, one_file):
    hub.add(REPO, one_file)
    layer_of(open_hub(REPO, None, offline=False))  # the header is here from an earlier run
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    hub.faults = [Fault("rewrite")]  # after its size and etag were asked for
    assert refusal(remote.fetch, refs.values()).startswith("error: a file changed on the hub while it was read\n")


def test_a_file_that_changes_after_its_header_was_read_is_said(hub, one_file):
    hub.add(REPO, one_file)
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    raw = bytearray((one_file / FILE).read_bytes())
    raw[-1] ^= 1
    (one_file / FILE).write_bytes(raw)
    assert refusal(remote.fetch, refs.values()).startswith("error: a file changed on the hub while it was read\n")
    again = open_hub(REPO, None, offline=False)
    again.fetch(layer_of(again).values())
    assert again.local_file(FILE).read_bytes() == raw


def test_an_answer_of_another_version_is_asked_for_again(hub, tinyglm):
    hub.faults = [Fault("retagged")]
    remote, refs = opened(hub, tinyglm)
    remote.fetch(refs.values())
    assert hub.faults[0].times == 0
    assert contents(remote, refs) == truth(tinyglm)


def test_a_host_of_files_that_names_no_version_is_no_trouble(hub, tinyglm):
    hub.redirects = True
    remote, refs = opened(hub, tinyglm)
    hub.faults = [Fault("untagged")]
    remote.fetch(refs.values())
    assert hub.faults[0].times == 0
    assert contents(remote, refs) == truth(tinyglm)
    assert not [r for r in hub.requests if r.kind == "head" and hub.requests.count(r) > 1]


KINDS = {
    "plain SHA-1": lambda raw: hashlib.sha1(raw).hexdigest(),
    "MD5": lambda raw: hashlib.md5(raw).hexdigest(),
    "SHA-256": lambda raw: hashlib.sha256(raw).hexdigest(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirror_with_other_hashes_as_etags_serves_as_the_hub(hub, tinyglm, kind, caplog):
    for name in ("config.json", "model.safetensors.index.json"):
        hub.etags[name] = KINDS[kind]((tinyglm("bf16") / name).read_bytes())
    hub.add(REPO, tinyglm("bf16"))
    remote = open_hub(REPO, None, offline=False)
    assert remote.names == open_folder(tinyglm("bf16")).names
    assert hub.sent["small"] < 2 * sum((tinyglm("bf16") / name).stat().st_size for name in hub.etags)
    assert caplog.records == []


@pytest.mark.parametrize("tag", ["v1-1234567", "ab" * 20])
def test_where_etags_are_no_hashes_two_transfers_are_compared_and_it_is_said_once(hub, tinyglm, tag, caplog):
    for name in ("config.json", "model.safetensors.index.json"):
        hub.etags[name] = f"{tag[:-1]}{len(name) % 10}"
    hub.add(REPO, tinyglm("bf16"))
    assert open_hub(REPO, None, offline=False).names == open_folder(tinyglm("bf16")).names
    assert [record.getMessage() for record in caplog.records] == [
        f"the etags of {hub.url} are no hashes of its files: small files are fetched twice and compared"
    ]


def test_a_small_file_of_an_opaque_etag_that_differs_at_every_transfer_is_refused_in_every_run(hub, tinyglm):
    hub.etags["config.json"] = "v1-1234567"
    hub.faults = [Fault("corrupt", on="small", times=99)]
    hub.add(REPO, tinyglm("bf16"))
    for _ in range(2):
        message = refusal(open_hub, REPO, None, offline=False)
        assert message.startswith("error: the connection changes the bytes that it carries\n")
