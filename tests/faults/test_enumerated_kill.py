"""The machine dies at the n-th change of the disk, for n = 1, 2, ... until a build is complete; then the same command.

One run is recorded, below the product, at the calls of `os` themselves. Every prefix of it is a disk that a killed
process leaves; with unsynced changes forgotten at random, one that a power cut leaves (`power_cut.py`). On each of
these disks the command runs again, from scratch. And the other way round: with the fsyncs of any one place taken out of
the story, some disk must show a violation, or this file proves nothing.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from contextlib import contextmanager

import pytest
from faults.power_cut import Data, Mark, Memory, Sync, read_tree, shape, write_tree
from faults.recording import Recorder
from small_plans import DENSE, INT4, carry, checkpoint, move, plan, weight

from mtpforge.building import build
from mtpforge.durable import effects
from mtpforge.errors import MtpforgeError
from mtpforge.planning.steps import Step
from mtpforge.tensors import Spec
from mtpforge.writing import folder
from mtpforge.writing.layout import place

N_SEEDS = 20 if os.environ.get("MTPFORGE_LONG") else 1
KILLED = Memory(1, 1)
CUTS = [
    *(Memory(0, 0), Memory(1, 0), Memory(0, 1)),
    *(Memory(names, data, seed) for seed in range(N_SEEDS) for names, data in [(0.5, 0.5), (0.8, 0.2), (0.2, 0.8)]),
]
SITES = [  # where the product asks for an fsync; one more belongs here, with a disk that shows why
    "_hold: a folder above",
    "_open: draft/",
    "_open: hidden folder",
    "flush: weights",
    "flush: journal",
    "write_file: small file",
    "commit: draft/",
    "commit: a folder above",
]
OF_RESUMING = "_open: journal"
OF_UNFINISHED = "commit: weights"


class Counted:
    """A checkpoint that notes which tensors are read."""

    def __init__(self, checkpoint):
        self.checkpoint, self.names = checkpoint, []

    def __getattr__(self, name):
        return getattr(self.checkpoint, name)

    def read(self, ref, into):
        self.names.append(ref.name)
        self.checkpoint.read(ref, into)


class Bench:
    """One kind of build: recorded once, gone on with from any state of the disk."""

    def __init__(self, home, *, force=False, exchange=True):
        self.home, self.force, self.exchange = home, force, exchange
        self.sound = set()  # disks on which all went well; many cuts leave the same
        tensors = {f"t.{i}": weight(4, 64, i) for i in range(3)} | {"m.weight": weight(32, 64, 9)}
        source = checkpoint(home / "source", tensors, {"LICENSE": "MIT"})
        steps = [carry(source, f"t.{i}") for i in range(3)]
        steps.insert(1, Step(moves=(move(source, "m", (32, 64), DENSE, INT4),)))
        self.source, self.plan = source, plan(source, steps)
        self.old_plan = plan(source, steps[:2])
        with self.fast():
            self.old = self.written(self.old_plan, "old")
            self.whole = self.written(self.plan, "whole", max_shard_bytes=1000)
        assert self.old != self.whole
        self.story = self.recorded()

    def written(self, made, name, **options):
        path = build(made, {"source": self.source}, self.home / name, check="off", **options).path
        return shape(read_tree(path))

    @contextmanager
    def fast(self):
        """fsync takes long and changes nothing that a test in one piece could see."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "BATCH_BYTES", 1000)
            patch.setattr(os, "fsync", lambda _: None)
            if not self.exchange:
                patch.setattr(effects, "_renameat2", lambda *_: False)
            yield patch

    def out(self, root):
        return root / "old" if self.force else root / "new" / "draft"

    def command(self, root, *, force):
        """What a user types; which tensors it read."""
        source = Counted(self.source)
        out = self.out(root)
        build(self.plan, {"source": source}, out, workers=1, check="off", force=force, max_shard_bytes=1000)
        return source.names

    def recorded(self, nodes=None, earlier=None):
        """The story of one run: from the start, on a disk after a power cut, or going on where a killed one ended."""
        root = self.home / "recorded"
        if nodes is None:
            root.mkdir()
            if self.force:
                shutil.copytree(self.home / "old", self.out(root))
        else:
            write_tree(nodes, root)
        recorder = Recorder(root, earlier)
        with self.fast() as patch, recorder.watching() as story:
            flush = folder.DraftFolder.flush
            patch.setattr(
                folder.DraftFolder,
                "flush",
                lambda draft: (flush(draft), recorder.note(Mark(frozenset(draft.finished))))[0],
            )
            self.command(root, force=self.force)
        shutil.rmtree(root)
        return story

    def visible(self, root):
        """What lies under the final name."""
        return shape(read_tree(self.out(root))) if os.path.lexists(self.out(root)) else None

    def has_new(self, nodes):
        """Whether the new draft lies under its name already."""
        held = shape(nodes)
        return (held.get("old") if self.force else held.get("new", {}).get("draft")) == self.whole

    def violations(self, nodes, finished, *, is_complete=False):
        """What is wrong with a disk, at first sight and after the command ran again."""
        disk = repr(shape(nodes)), finished, is_complete
        if disk in self.sound:
            return []
        root = self.home / "disk"
        write_tree(nodes, root)
        try:
            with self.fast():
                found = list(self.complaints(root, finished, is_complete=is_complete))
        finally:
            shutil.rmtree(root)
        if not found:
            self.sound.add(disk)
        return found

    def complaints(self, root, finished, *, is_complete):
        seen = self.visible(root)
        if seen not in (self.whole, self.old if self.force else None) and (seen is not None or self.exchange):
            yield "neither the old nor the new draft lies under the name"
        if is_complete and seen != self.whole:
            yield "the build had ended, and its draft is not there"
        if seen is None and self.force:
            # Between two renames the name is empty. Any next command puts the old draft back, also one that is refused.
            yield from self.refusal(root, self.old)
        if seen == self.whole and not self.force:
            yield from self.refusal(root, self.whole)
            return
        try:
            names = self.command(root, force=self.force)
        except (MtpforgeError, OSError, AssertionError) as error:
            yield f"the same command fails: {error}"
            return
        if self.visible(root) != self.whole:
            yield "the same command gives other bytes"
        if left := [p.name for p in self.out(root).parent.iterdir() if p != self.out(root)]:
            yield f"left behind: {left}"
        again = {ref.name for step in finished for ref in self.plan.steps[step].reads} & set(names)
        if seen != self.whole and again:
            yield f"made again: {sorted(again)}"

    def refusal(self, root, expected):
        try:
            self.command(root, force=False)
            yield "an existing draft was replaced without --force"
        except MtpforgeError as error:
            if error.what != "the output exists already":
                yield f"refused with: {error}"
        if self.visible(root) != expected:
            yield "a refused command changed the draft"
        if not self.force and (self.out(root).parent / f".{self.out(root).name}.mtpforge-tmp").exists():
            yield "the hidden folder stays"


def journaled(nodes):
    """Steps that a killed process has written down, by a reader of our own."""
    files = [bytes(held) for held in nodes.values() if isinstance(held, bytearray)]
    journals = [raw for raw in files if raw.startswith(b'{"key":')]
    lines = b"".join(journals).split(b"\n")[1:-1]
    return frozenset(json.loads(line)["step"] for line in lines)


def first_violation(bench, story, memories, start=0):
    """(n, memory, what) of the first disk with a violation, None where all are sound."""
    for memory in memories:
        for n in range(start, len(story.ops) + 1):
            nodes, is_complete = story.after_cut(n, memory), n == len(story.ops)
            if found := bench.violations(nodes, story.finished(n), is_complete=is_complete):
                return n, memory, found
    return None


def killed(bench, n):
    """What the command does after a kill at n, as one story with what was done before it; None if all was done."""
    nodes = bench.story.after_cut(n, KILLED)
    return None if bench.has_new(nodes) else bench.recorded(nodes, bench.story.with_ops(bench.story.ops[:n]))


KINDS = {"new": {}, "exchanged": {"force": True}, "moved-aside": {"force": True, "exchange": False}}


@pytest.fixture(scope="module", params=list(KINDS))
def bench(request, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"), **KINDS[request.param])


@pytest.mark.sampled(3)
def test_process_killed_at_any_change_of_the_disk_leaves_all_or_nothing(bench):
    story = bench.story
    assert len(story.ops) > 80
    for n in range(len(story.ops) + 1):
        nodes = story.after_cut(n, KILLED)
        assert bench.violations(nodes, journaled(nodes), is_complete=n == len(story.ops)) == []


@pytest.mark.sampled(3)
def test_power_cut_at_any_change_of_the_disk_leaves_all_or_nothing(bench):
    assert first_violation(bench, bench.story, CUTS) is None


@pytest.mark.sampled(3)
def test_power_cut_in_the_run_after_a_power_cut_leaves_all_or_nothing(bench):
    chance = random.Random(1)
    for n in chance.choices(range(len(bench.story.ops)), k=10 * N_SEEDS):
        nodes = bench.story.after_cut(n, chance.choice(CUTS))
        if bench.has_new(nodes):
            continue
        story, safe = bench.recorded(nodes), bench.story.finished(n)
        for m in chance.sample(range(len(story.ops)), 6):
            disk = story.after_cut(m, chance.choice(CUTS))
            assert bench.violations(disk, safe | story.finished(m)) == []


@pytest.mark.sampled(3)
def test_power_cut_in_the_run_after_a_kill_leaves_all_or_nothing(bench):
    """The second run finds all that the first one wrote, on the medium or not, and must not take it for durable."""
    chance = random.Random(2)
    made = next(n for n, op in enumerate(bench.story.ops) if isinstance(op, Sync)) + 1
    for n in range(made, len(bench.story.ops), 1 if N_SEEDS > 1 else 3):
        if story := killed(bench, n):
            for m in [*chance.sample(range(n, len(story.ops)), 4), len(story.ops)]:
                disk = story.after_cut(m, chance.choice(CUTS))
                assert bench.violations(disk, story.finished(m), is_complete=m == len(story.ops)) == []


def test_list_of_fsyncs_is_complete(bench):
    resumed = killed(bench, 60)
    assert {*bench.story.sites, *resumed.sites} == {*SITES, OF_RESUMING, OF_UNFINISHED}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("site", SITES)
def test_fsync_taken_out_is_found(bench, site):
    start = next(n for n, op in enumerate(bench.story.ops) if isinstance(op, Sync) and op.site == site)
    assert first_violation(bench, bench.story.without(site), CUTS, start) is not None


@pytest.mark.slow
def test_fsync_of_resuming_taken_out_is_found(bench):
    appended = [n for n, op in enumerate(bench.story.ops) if isinstance(op, Data) and op.raw.startswith(b'{"step":')]
    story = killed(bench, appended[-1] + 1)
    assert OF_RESUMING in story.sites
    assert first_violation(bench, story, CUTS, appended[-1] + 1) is None
    assert first_violation(bench, story.without(OF_RESUMING), CUTS, appended[-1] + 1) is not None


def test_weights_that_no_step_finished_are_synced_before_they_appear(tmp_path):
    """A build flushes before, so it never needs this fsync; whoever calls `put` and `commit` alone does."""
    (root := tmp_path / "root").mkdir()
    with Recorder(root).watching() as story:
        draft = folder.DraftFolder(root / "draft", "k", place({"a": Spec("U8", (4,))}.items()))
        draft.put("a", 0, memoryview(b"abcd"))
        draft.commit()

    def left(story):
        return shape(story.after_cut(len(story.ops), Memory(0, 0)))["draft"]["model.safetensors"][-4:]

    assert left(story) == b"abcd"
    assert left(story.without(OF_UNFINISHED)) != b"abcd"
