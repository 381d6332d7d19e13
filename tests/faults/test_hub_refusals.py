"""What the hub or the disk refuses: each a clear message with its exit code."""

from __future__ import annotations

import errno
import os

import pytest
from faults.hub_reading import REPO, contents, layer_of, opened, refusal
from faults.hub_server import GOOD_TOKEN, Fault

from mtpforge.checkpoint.folder import open_folder
from mtpforge.checkpoint.hub import transfer
from mtpforge.checkpoint.hub.repository import open_hub


def test_a_missing_repository(hub):
    assert refusal(open_hub, "org/nowhere", None, offline=False) == (
        "error: the hub has no model repository `org/nowhere`\n"
        "where: org/nowhere\n"
        "cause: the name is wrong, or the repository is private and no token is set\n"
        f" hint: check the name at {hub.url}/org/nowhere; "
        "for a private repository set `HF_TOKEN` or run `hf auth login`"
    )


def test_a_missing_revision(hub, tinyglm):
    hub.add(REPO, tinyglm("bf16"))
    assert refusal(open_hub, REPO, "v9", offline=False) == (
        "error: org/tiny-GLM has no revision `v9`\n"
        "where: org/tiny-GLM@v9\n"
        f" hint: take a branch, tag or commit from {hub.url}/org/tiny-GLM/commits/main, or leave out `@v9`"
    )


def test_a_missing_config(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    commit = hub.add(REPO, tmp_path / "empty")
    assert refusal(open_hub, REPO, None, offline=False) == (
        "error: org/tiny-GLM has no file `config.json`\n"
        f"where: org/tiny-GLM@{commit}\n"
        f" hint: look at {hub.url}/org/tiny-GLM/tree/{commit}"
    )


def test_a_gated_repository_without_a_token(hub, tinyglm):
    commit = hub.add(REPO, tinyglm("bf16"), is_gated=True)
    assert refusal(open_hub, REPO, None, offline=False) == (
        "error: org/tiny-GLM is gated\n"
        f"where: org/tiny-GLM@{commit}, config.json\n"
        "cause: its files need a token of an account that has accepted the licence, and no token is set\n"
        f" hint: accept the licence at {hub.url}/org/tiny-GLM, then set `HF_TOKEN` or run `hf auth login`"
    )


def test_a_gated_repository_with_a_token_without_access(hub, tinyglm, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    commit = hub.add(REPO, tinyglm("bf16"), is_gated=True)
    assert refusal(open_hub, REPO, None, offline=False) == (
        "error: org/tiny-GLM is gated\n"
        f"where: org/tiny-GLM@{commit}, config.json\n"
        "cause: the account of the token in use has no access\n"
        f" hint: ask for access at {hub.url}/org/tiny-GLM, then run this again"
    )


def test_a_gated_repository_with_a_token_that_has_access(hub, tinyglm, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    hub.add(REPO, tinyglm("bf16"), is_gated=True)
    remote = open_hub(REPO, None, offline=False)
    refs = layer_of(remote)
    remote.fetch(refs.values())
    assert contents(remote, refs) == contents(open_folder(tinyglm("bf16")), refs)


@pytest.mark.parametrize("by_option", [True, False])
def test_offline_with_nothing_cached(hub, tinyglm, monkeypatch, by_option):
    hub.add(REPO, tinyglm("bf16"))
    monkeypatch.setattr(transfer.constants, "HF_HUB_OFFLINE", not by_option)
    cause, fix = ("`--offline` was given", "leave out `--offline`")
    if not by_option:
        cause, fix = "HF_HUB_OFFLINE is set", "run `unset HF_HUB_OFFLINE`"
    assert refusal(open_hub, REPO, None, offline=by_option) == (
        "error: `org/tiny-GLM` is not cached\n"
        "where: org/tiny-GLM\n"
        f"cause: {cause}\n"
        f" hint: {fix}, or run this once with a network"
    )
    assert not hub.requests


def test_offline_with_headers_but_not_all_bytes_cached(hub, tinyglm):
    remote, refs = opened(hub, tinyglm)
    offline = open_hub(REPO, None, offline=True)
    assert layer_of(offline) == refs
    file = min(ref.file for ref in refs.values())
    assert refusal(offline.fetch, refs.values()) == (
        f"error: `{file}` of org/tiny-GLM is not cached\n"
        f"where: org/tiny-GLM@{remote.revision}\n"
        "cause: `--offline` was given\n"
        " hint: leave out `--offline`, or run this once with a network"
    )
    assert not hub.requests


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_offline_with_everything_cached(hub, tinyglm, monkeypatch, revision):
    remote, refs = opened(hub, tinyglm)
    remote.fetch(refs.values())
    open_hub(REPO, "main", offline=False)
    hub.forget()
    monkeypatch.setattr(transfer.constants, "HF_HUB_OFFLINE", True)
    offline = open_hub(REPO, remote.revision if revision == "commit" else revision, offline=False)
    found = layer_of(offline)
    offline.fetch(found.values())
    assert contents(offline, found) == contents(open_folder(tinyglm("bf16")), refs)
    assert offline.identity == remote.identity
    assert not hub.requests


def test_offline_with_a_snapshot_that_the_hub_tools_downloaded(hub, tinyglm):
    from huggingface_hub import hf_hub_download

    folder = tinyglm("bf16")
    commit = hub.add(REPO, folder)
    for path in folder.iterdir():
        hf_hub_download(REPO, path.name)
    hub.forget()
    offline = open_hub(REPO, None, offline=True)
    refs = layer_of(offline)
    offline.fetch(refs.values())
    assert offline.revision == commit
    assert contents(offline, refs) == contents(open_folder(folder), refs)
    assert not hub.requests


@pytest.mark.parametrize("by_hub_tools", [True, False])
def test_offline_takes_the_branch_as_it_was_last_seen(hub, tinyglm, by_hub_tools):
    from huggingface_hub import hf_hub_download

    def see(folder, *, with_hub_tools):
        commit = hub.add(REPO, folder)
        if with_hub_tools:
            hf_hub_download(REPO, "config.json")
        else:
            open_hub(REPO, None, offline=False)
        return commit

    see(tinyglm("bf16"), with_hub_tools=not by_hub_tools)
    last = see(tinyglm("fp8"), with_hub_tools=by_hub_tools)
    assert open_hub(REPO, None, offline=True).revision == last


def test_no_network(hub, tinyglm):
    hub.add(REPO, tinyglm("bf16"))
    hub.end()
    hub.server_close()
    assert refusal(open_hub, REPO, None, offline=False) == (
        "error: the hub cannot be reached, tried 6 times\n"
        "where: org/tiny-GLM\n"
        "cause: no connection could be made\n"
        " hint: check the network, proxies and `HF_ENDPOINT`, then run this again: what was fetched is kept; "
        "`--offline` uses the cache alone"
    )


def test_a_login_page_in_place_of_the_hub(hub, tinyglm):
    hub.add(REPO, tinyglm("bf16"))
    hub.faults = [Fault("garbage", on="api")]
    assert refusal(open_hub, REPO, None, offline=False) == (
        f"error: {hub.url} does not answer like the hub\n"
        "where: org/tiny-GLM\n"
        "cause: its answer describes no model\n"
        " hint: check `HF_ENDPOINT`, proxies, and whether this network wants a login"
    )


def test_a_malformed_token_is_said_and_not_quoted(hub, tinyglm, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\u2026")  # copied from a page that shortens it
    hub.add(REPO, tinyglm("bf16"))
    assert refusal(open_hub, REPO, None, offline=False) == (
        "error: the request to the hub cannot be made\n"
        "where: org/tiny-GLM\n"
        "cause: the address or the token is malformed\n"
        " hint: `HF_ENDPOINT` must begin with https:// or http://, `HF_TOKEN` must be one word of ASCII characters"
    )


def test_a_full_disk_in_the_cache(hub, tinyglm, monkeypatch):
    remote, refs = opened(hub, tinyglm)
    ref = min(refs.values(), key=lambda r: r.start)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert refusal(remote.fetch, [ref], code=5) == (
        "error: the download cache is full\n"
        f"where: {remote.local_file(ref.file)}\n"
        "cause: No space left on device\n"
        " hint: free some space there, or set `MTPFORGE_CACHE` to a folder on another disk; what is there is kept"
    )
    monkeypatch.undo()


def test_a_disk_too_small_is_said_before_anything_is_fetched(hub, tinyglm, monkeypatch):
    import shutil

    remote, refs = opened(hub, tinyglm)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    n_bytes = remote.missing_bytes(refs.values())
    file = remote.local_file(min(ref.file for ref in refs.values()))
    assert refusal(remote.fetch, refs.values(), code=5) == (
        "error: the disk of the download cache is too small\n"
        f"where: {file.parent}\n"
        f"cause: {n_bytes / 1e6:.2f} MB are needed, 1.00 MB are free\n"
        " hint: free some space there, or set `MTPFORGE_CACHE` to a folder on another disk; what is there is kept"
    )
    assert hub.sent["range"] == 0
