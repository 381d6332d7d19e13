"""A merge dies at the n-th change of the disk, or the power does; then the same command runs again.

The usual runs take a sample of all n, the slow ones every one, and every way of linking.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
from faults.power_cut import Memory
from faults.published import Published
from faults.test_enumerated_kill import KILLED, OF_RESUMING, SITES
from safetensors.torch import save_file
from torch import arange

from mtpforge.publishing import making_merges, merging
from mtpforge.publishing.merging import Asked

CUTS = [KILLED, Memory(0, 0), Memory(0.5, 0.5, 1)]
EVERY = pytest.mark.slow
TAKEN = "model.layers.1.*"
HELD = {
    "a.safetensors": ("model.norm.weight", "model.layers.1.input_layernorm.weight"),
    "b.safetensors": ("lm_head.weight", "model.layers.0.input_layernorm.weight"),
    "c.safetensors": ("model.layers.1.post_attention_layernorm.weight",),
}


@pytest.fixture(scope="module", params=["sym", *(pytest.param(how, marks=EVERY) for how in ("hard", "copy"))])
def bench(request, tmp_path_factory, tinyglm):
    return Bench(tmp_path_factory.mktemp("bench"), tinyglm("bf16") / "config.json", request.param)


class Bench(Published):
    """Two checkpoints of three files: of the base one stays, one loses a tensor, one goes; of the other two give."""

    kind = "merge"

    def __init__(self, home, config, link):
        for first, name in enumerate(("base", "other")):
            (home / name).mkdir()
            shutil.copy(config, home / name)
            for file, names in HELD.items():
                save_file({n: arange(90.0) + 7 * first + len(n) for n in names}, home / name / file)
            index = {"weight_map": {name: file for file, names in HELD.items() for name in names}}
            (home / name / "model.safetensors.index.json").write_text(json.dumps(index))
        self.link = link
        super().__init__(home, (home / "base", home / "other"))

    def command(self, root):
        base, other = self.inputs
        asked = Asked(base=base, takes=((TAKEN, other),), out=root / "new" / "merge", link=self.link)
        merge = merging.decide(asked)
        assert sorted(file.file for _, _, file in merge.rewritten) == ["a.safetensors", "take-1-a.safetensors"]
        making_merges.make(merge)


def test_merge_killed_at_a_sample_of_changes_is_whole_or_not_there(bench):
    check(bench, range(0, len(bench.story.ops), 9))
    check(bench, [len(bench.story.ops)])


@EVERY
def test_merge_killed_at_any_change_of_the_disk_is_whole_or_not_there(bench):
    check(bench, range(len(bench.story.ops) + 1))


def check(bench, cuts):
    n_ops = len(bench.story.ops)
    assert n_ops > 40
    for memory in CUTS:
        for n in cuts:
            nodes = bench.story.after_cut(n, memory)
            assert bench.complaints(nodes, is_complete=n == n_ops) == [], (n, memory)


def test_every_fsync_of_a_merge_is_one_that_builds_are_tested_without(bench):
    assert {*bench.story.sites} <= {*SITES, OF_RESUMING, "commit: weights"}


def test_merge_without_the_fsync_of_its_names_would_be_found(bench):
    story = bench.story.without("commit: draft/")
    broken = [story.after_cut(n, Memory(0, 0)) for n in range(len(story.ops) + 1)]
    assert any(bench.complaints(nodes, is_complete=False) for nodes in broken)


def test_merge_that_would_write_into_what_it_takes_from_is_found(bench, monkeypatch):
    """The check of the inputs, checked: a write of the same bytes changes the time alone."""
    make, file = making_merges.make, bench.inputs[1] / "c.safetensors"

    def writing(merge):
        make(merge)
        file.write_bytes(file.read_bytes())

    monkeypatch.setattr(bench, "sound", set())
    monkeypatch.setattr(making_merges, "make", writing)
    times = file.stat()
    try:
        assert bench.complaints({0: {}}, is_complete=False) == ["what it is made of was written to"]
    finally:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
