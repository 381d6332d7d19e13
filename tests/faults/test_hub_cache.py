"""A download cache on a disk that damages it: what is damaged is never used, but fetched again or named."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from faults.hub_reading import REPO, contents, layer_of, opened, refusal, truth
from huggingface_hub import constants

from mtpforge.checkpoint.hub import agreement, cache
from mtpforge.checkpoint.hub.repository import open_hub


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    assert bytes(raw) != path.read_bytes()
    with path.open("r+b") as file:
        file.write(raw)


def kept(hub, tinyglm):
    """The layer in the cache, as an earlier run left it."""
    remote, refs = opened(hub, tinyglm)
    remote.fetch(refs.values())
    hub.forget()
    return remote, refs


def test_a_bit_that_the_disk_flipped_since_is_never_used(hub, tinyglm):
    remote, refs = kept(hub, tinyglm)
    ref = max(refs.values(), key=lambda r: r.stop - r.start)
    flip(remote.local_file(ref.file), ref.start + 5)
    again = open_hub(REPO, None, offline=False)
    again.fetch(layer_of(again).values())
    assert contents(again, refs) == truth(tinyglm)
    assert 0 < hub.sent["range"] <= 1 << 20  # the damaged piece
    hub.forget()
    last = open_hub(REPO, None, offline=False)
    assert contents(last, layer_of(last)) == truth(tinyglm)
    assert hub.sent["range"] == 0


def test_a_header_that_the_disk_damaged_is_fetched_again(hub, tinyglm):
    remote, refs = kept(hub, tinyglm)
    for file in {ref.file for ref in refs.values()}:
        flip(remote.local_file(file), 20)
    again = open_hub(REPO, None, offline=False)
    assert layer_of(again) == refs
    assert hub.sent["range"] > 0


def test_damage_in_many_places_is_mended_at_once_while_several_threads_read(hub, tinyglm, monkeypatch):
    monkeypatch.setattr("mtpforge.checkpoint.hub.checksums.PIECE_BYTES", 10_000)
    remote, refs = kept(hub, tinyglm)
    path = remote.local_file(next(iter(refs.values())).file)
    here = {name: ref for name, ref in refs.items() if remote.local_file(ref.file) == path}
    for ref in here.values():
        flip(path, ref.stop - 1)
    again = open_hub(REPO, None, offline=False)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: contents(again, {name: here[name]})[name], here))
    assert found == [truth(tinyglm)[name] for name in here]
    assert len([r for r in hub.requests if r.kind == "head"]) == 1


def test_a_thread_waits_while_another_fetches_the_damaged_piece(hub, tinyglm, monkeypatch):
    remote, refs = kept(hub, tinyglm)
    ref = max(refs.values(), key=lambda r: r.stop - r.start)
    flip(remote.local_file(ref.file), ref.start)
    again = open_hub(REPO, None, offline=False)
    real, others = cache.RangeFile.forget, []
    with ThreadPoolExecutor(1) as pool:

        def forget(file, pieces):
            real(file, pieces)
            others.append(pool.submit(contents, again, {ref.name: ref}))  # finds the piece missing
            wait(others, timeout=0.2)

        monkeypatch.setattr(cache.RangeFile, "forget", forget)
        assert contents(again, {ref.name: ref}) == {ref.name: truth(tinyglm)[ref.name]}
        assert [other.result() for other in others] == [{ref.name: truth(tinyglm)[ref.name]}]


def test_offline_damage_is_named_and_nothing_is_asked(hub, tinyglm):
    remote, refs = kept(hub, tinyglm)
    ref = max(refs.values(), key=lambda r: r.stop - r.start)
    flip(remote.local_file(ref.file), ref.start)
    offline = open_hub(REPO, None, offline=True)
    offline.fetch(refs.values())
    assert refusal(contents, offline, {ref.name: ref}) == (
        f"error: `{ref.file}` of {REPO} is not cached\n"
        f"where: {REPO}@{remote.revision}\n"
        "cause: its copy was damaged on the disk, and `--offline` was given\n"
        " hint: leave out `--offline`, or run this once with a network"
    )
    assert not hub.requests


@pytest.mark.parametrize("offline", [False, True])
def test_a_small_file_that_the_disk_damaged_is_fetched_again_or_named(hub, tinyglm, offline):
    remote, _ = kept(hub, tinyglm)
    (config,) = cache.home().parent.glob("hub/models--*/snapshots/*/config.json")
    flip(config.resolve(), 40)
    if offline:
        assert refusal(open_hub, REPO, None, offline=True) == (
            f"error: `config.json` of {REPO} is not cached\n"
            f"where: {REPO}@{remote.revision}\n"
            "cause: its copy in the hub's cache is damaged, and `--offline` was given\n"
            " hint: leave out `--offline`, or run this once with a network"
        )
        assert not hub.requests
    else:
        assert open_hub(REPO, None, offline=False).config == remote.config


@pytest.mark.parametrize("offline", [False, True])
def test_a_cache_of_an_earlier_layout_is_fetched_again_or_named(hub, tinyglm, offline):
    remote, refs = kept(hub, tinyglm)
    for file in {ref.file for ref in refs.values()}:
        path = remote.local_file(file)
        journal = path.with_name(f"{path.name}.ranges")
        head = json.loads(journal.read_bytes().splitlines()[0])
        lines = [json.dumps({"bytes": head["bytes"], "etag": head["etag"]}), f"0 {head['bytes']}", ""]
        journal.write_text("\n".join(lines))
    if offline:
        assert "is not cached" in refusal(lambda: layer_of(open_hub(REPO, None, offline=True)))
        return
    again = open_hub(REPO, None, offline=False)
    again.fetch(layer_of(again).values())
    assert contents(again, refs) == truth(tinyglm)


def test_a_disk_that_damages_what_is_written_to_it_is_named(hub, tinyglm, monkeypatch):
    real = cache.RangeFile.put
    remote, refs = opened(hub, tinyglm)
    ref = max(refs.values(), key=lambda r: r.stop - r.start)
    monkeypatch.setattr(agreement, "confirm", lambda *_: 0)
    monkeypatch.setattr(cache.RangeFile, "put", lambda file, at, raw: real(file, at, bytes(len(raw))))
    remote.fetch([ref])
    assert refusal(contents, remote, {ref.name: ref}, code=5) == (
        "error: the disk of the download cache damages what is written to it\n"
        f"where: {remote.local_file(ref.file)}\n"
        "cause: bytes that were fetched again for their checksum read otherwise at once\n"
        " hint: look after the disk, or set `MTPFORGE_CACHE` to a folder on another one"
    )


def vanish(monkeypatch):
    """Nobody listens any more: the discard port of this machine."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")


def test_a_hub_that_cannot_be_reached_is_answered_from_the_cache_with_a_note(hub, tinyglm, monkeypatch, caplog):
    remote, refs = opened(hub, tinyglm)
    remote.fetch(refs.values())
    vanish(monkeypatch)
    again = open_hub(REPO, None, offline=False)
    assert contents(again, layer_of(again)) == truth(tinyglm)
    assert [r.getMessage() for r in caplog.records if r.name == "mtpforge.notes"] == [
        f"the hub cannot be reached: {REPO} is used as it was last seen"
    ]


def test_waiting_for_a_hub_that_cannot_be_reached_is_said_once(hub, monkeypatch, caplog):
    vanish(monkeypatch)
    assert "error: the hub cannot be reached, tried 6 times" in refusal(open_hub, REPO, None, offline=False)
    assert [r.getMessage() for r in caplog.records if r.name == "mtpforge.notes"] == [
        f"waiting for the hub ({REPO}): no connection could be made; it is asked up to 6 times"
    ]
