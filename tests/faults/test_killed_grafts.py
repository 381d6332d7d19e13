"""A graft dies at the n-th change of the disk, or the power does, for every n; then the same command runs again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from faults.power_cut import Memory
from faults.published import Published
from faults.test_enumerated_kill import KILLED, OF_RESUMING, SITES
from safetensors.torch import save_file
from torch import arange

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.publishing import graft as grafts
from mtpforge.publishing import making
from mtpforge.publishing.graft import Addition, Asked, Layer
from mtpforge.publishing.patches import Patch
from mtpforge.publishing.target_files import target_files
from mtpforge.report import Report

CUTS = [Memory(0, 0), Memory(0.5, 0.5, 1)]
LAYER = "model.layers.3."


def numbers(first, n=40):
    return arange(first, first + n).float()


@pytest.fixture(
    scope="module", params=["sym", *(pytest.param(how, marks=pytest.mark.slow) for how in ("hard", "copy"))]
)
def bench(request, tmp_path_factory, tinyglm):
    return Bench(tmp_path_factory.mktemp("bench"), tinyglm("awq-int4") / "config.json", request.param)


class Bench(Published):
    """A target of three files, of which one stays, one loses a tensor, and one goes; a layer of three tensors."""

    kind = "graft"

    def __init__(self, home, config, link):
        target = home / "target"
        target.mkdir()
        shutil.copy(config, target)
        held = {
            "a.safetensors": {"model.norm.weight": numbers(1)},
            "b.safetensors": {"lm_head.weight": numbers(2), f"{LAYER}old.weight": numbers(3)},
            "c.safetensors": {f"{LAYER}older.weight": numbers(4)},
        }
        for file, tensors in held.items():
            save_file(tensors, target / file)
        index = {"weight_map": {name: file for file, tensors in held.items() for name in tensors}}
        (target / "model.safetensors.index.json").write_text(json.dumps(index))
        source = home / "source"
        source.mkdir()
        shutil.copy(config, source)
        save_file({f"{LAYER}{i}.weight": numbers(i, 90) for i in range(3)}, source / "model.safetensors")
        self.source, self.files = open_checkpoint(source), target_files(open_checkpoint(target), ENGINES["vllm"])
        self.asked = Asked(layer=source, target=target, out="", link=link)
        super().__init__(home, (target, source))

    def command(self, root):
        refs = self.source.locate(sorted(self.source.names))
        specs = {name: ref.spec for name, ref in refs.items()}
        added = Addition("vllm", "t", "c", "l", 3, "bf16", 1, Patch({"k": 1}), None, False, specs, {})
        asked = replace(self.asked, out=root / "new" / "graft")
        graft = grafts.laid_out(asked, self.files, added, Layer(self.source, refs), None)
        assert (len(graft.kept), graft.dropped) == (1, ("c.safetensors",))
        making.make(graft, lambda _: Report("graft", ()))


def test_graft_killed_at_any_change_of_the_disk_is_whole_or_not_there(bench):
    assert len(bench.story.ops) > 40
    for n in range(len(bench.story.ops) + 1):
        assert bench.complaints(bench.story.after_cut(n, KILLED), is_complete=n == len(bench.story.ops)) == [], n


def test_power_cut_at_any_change_of_the_disk_leaves_a_whole_graft_or_none(bench):
    for memory in CUTS:
        for n in range(len(bench.story.ops) + 1):
            nodes = bench.story.after_cut(n, memory)
            assert bench.complaints(nodes, is_complete=n == len(bench.story.ops)) == [], (n, memory)


def test_every_fsync_of_a_graft_is_one_that_builds_are_tested_without(bench):
    assert {*bench.story.sites} <= {*SITES, OF_RESUMING, "commit: weights"}


def test_graft_without_the_fsync_of_its_names_would_be_found(bench):
    story = bench.story.without("commit: draft/")
    broken = [story.after_cut(n, Memory(0, 0)) for n in range(len(story.ops) + 1)]
    assert any(bench.complaints(nodes, is_complete=False) for nodes in broken)
