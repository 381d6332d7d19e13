"""Recorded inputs and the download cache on a disk that forgets, as drafts are in test_enumerated_kill.py.

Each is written once under a recorder. Every prefix of that story, with unsynced changes forgotten at random, is a disk
that a reader must understand; and with the fsyncs of any one place taken out, some disk must not be.
"""

from __future__ import annotations

import os
import shutil
import zlib

import pytest
import torch
from faults.power_cut import Memory, read_tree, shape, write_tree
from faults.recording import Recorder

from mtpforge.checkpoint.hub import cache
from mtpforge.checkpoint.hub.checksums import Piece
from mtpforge.checkpoint.hub.ranges import Range
from mtpforge.nextn import inputs

CUTS = [Memory(1, 1), Memory(0, 0), Memory(1, 0), Memory(0, 1), *(Memory(0.5, 0.5, seed) for seed in range(20))]
VERSIONS = [b"abcdefgh", b"ijklmnop"]


def recorded(root, act):
    root.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        with Recorder(root).watching() as story:
            act()
    return story


class Whole:
    """A file that must hold what it held before, or all of what is written now."""

    def __init__(self, home, write):
        (home / "root").mkdir()
        self.path = home / "root" / "file"
        write(self.path, 0)
        old = self.path.read_bytes()
        self.story = recorded(home / "root", lambda: write(self.path, 1))
        self.both = old, self.path.read_bytes()

    def is_wrong(self, nodes, *, is_complete):
        found = shape(nodes)["file"]
        return found not in self.both or (is_complete and found != self.both[1])


class Ranges:
    """A file of the cache that changed on the hub: the journal may only name what is there."""

    def __init__(self, home):
        self.disk = home / "disk"
        (home / "root").mkdir()
        self.fill(home / "root" / "x.safetensors", 0)
        self.story = recorded(home / "root", lambda: self.fill(home / "root" / "x.safetensors", 1))

    def fill(self, path, version):
        file = cache.RangeFile(path)
        with file.locked(), file.filling(cache.Identity(8, f"etag {version}")):
            for start in (0, 4):
                half = VERSIONS[version][start : start + 4]
                file.put(start, half)
                file.finish([Piece(Range(start, start + 4), zlib.crc32(half))])

    def is_wrong(self, nodes, *, is_complete):
        write_tree(nodes, self.disk)
        file = cache.RangeFile(self.disk / "x.safetensors")
        version = int(file.identity.etag[-1]) if file.identity else 0
        found = bool(file.damaged(Range(0, 8))) or (is_complete and (file.held, version) != ((Range(0, 8),), 1))
        found |= any(file.read(p) != VERSIONS[version][p.start : p.stop] for p in file.held)
        shutil.rmtree(self.disk)
        return found


def write_inputs(path, n):
    rows = inputs.Sequence(torch.arange(n + 2), torch.arange(n + 2), torch.zeros(n + 2, 8))
    inputs.write(path, [rows], target=f"target {n}", force=True)


KINDS = {
    "inputs": (lambda home: Whole(home, write_inputs), {"write: small file", "write: a folder above"}),
    "listing": (
        lambda home: Whole(home, lambda path, n: cache.replace_text(path, ["old", "new"][n] * 9)),
        {"replace_text: small file", "replace_text: a folder above"},
    ),
    "ranges": (Ranges, {"finish: weights", "_append: small file", "drop: small file", "filling: a folder above"}),
}


@pytest.fixture(scope="module", params=list(KINDS))
def bench(request, tmp_path_factory):
    make, sites = KINDS[request.param]
    made = make(tmp_path_factory.mktemp("bench"))
    made.sites = sites
    return made


def wrong(bench, story):
    """The first disk that is wrong, None where none is."""
    for memory in CUTS:
        for n in range(len(story.ops) + 1):
            if bench.is_wrong(story.after_cut(n, memory), is_complete=n == len(story.ops)):
                return n, memory
    return None


def test_kill_or_power_cut_at_any_change_of_the_disk_leaves_what_a_reader_may_trust(bench):
    assert len(bench.story.ops) > 5
    assert wrong(bench, bench.story) is None


def test_every_fsync_is_needed(bench):
    assert set(bench.story.sites) == bench.sites
    for site in bench.sites:
        assert wrong(bench, bench.story.without(site)) is not None, site


def test_a_recording_in_a_new_folder_keeps_the_folder(tmp_path):
    story = recorded(tmp_path / "root", lambda: write_inputs(tmp_path / "root" / "new" / "file", 0))
    left = shape(story.after_cut(len(story.ops), Memory(0, 0)))
    assert left == shape(read_tree(tmp_path / "root"))
    lost = shape(story.without("write: a folder above").after_cut(len(story.ops), Memory(0, 0)))
    assert lost == {}
