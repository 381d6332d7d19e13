"""A build that dies at any moment leaves no half draft, and the same command completes with the same bytes.

A child wraps the five functions that change the disk and exits before or after the n-th call, for n = 1, 2, ... until a
run completes. The wrapper also forgets: it undoes a random part of what was put or appended and not synced, as a power
cut would. Killing alone would not notice a missing fsync.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_plans import DENSE, INT4, carry, checkpoint, move, plan, weight

from mtpforge.building import build
from mtpforge.planning.steps import Step
from mtpforge.writing import effects, folder

COMPLETE, KILLED = 0, 9


class Mortal:
    """Wraps the five functions: exits at call `last`, before or after it; remembers what is not durable."""

    def __init__(self, last, *, after, seed=None):
        self.left, self.after, self.random = last, after, None if seed is None else random.Random(seed)
        self.unsynced = []  # what to call to undo a put or append
        for name in ("allocate", "put", "append", "sync", "publish"):
            setattr(effects, name, self.wrapped(name, getattr(effects, name)))

    def wrapped(self, name, real):
        def effect(*args):
            self.left -= 1
            if self.left == 0 and not self.after:
                self.die()
            self.remember(name, args)
            result = real(*args)
            if self.left == 0:
                self.die()
            return result

        return effect

    def remember(self, name, args):
        if name == "put":
            fd, data, offset = args
            old = os.pread(fd, len(data), offset)
            self.unsynced.append((fd, lambda: os.pwrite(fd, old, offset)))
        if name == "append":
            fd, size = args[0], os.fstat(args[0]).st_size
            self.unsynced.append((fd, lambda: os.ftruncate(fd, size + self.random.randint(0, len(args[1]) - 1))))
        if name == "sync":
            same = os.fstat(args[0])
            self.unsynced = [(fd, undo) for fd, undo in self.unsynced if not os.path.samestat(os.fstat(fd), same)]

    def die(self):
        if self.random:
            for _, undo in reversed(self.unsynced):
                if self.random.random() < 0.5:
                    undo()
        os._exit(KILLED)


def in_child(work):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        pid = os.fork()
    if not pid:
        status = 70
        try:
            work()
            status = COMPLETE
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "BATCH_BYTES", 3000)
    monkeypatch.setattr(effects, "sync", lambda _: None)  # a process that dies loses no page cache; the test stays fast
    tensors = {f"t.{i}": weight(8, 64, i) for i in range(5)} | {"m.weight": weight(256, 64, 9)}
    source = checkpoint(tmp_path / "source", tensors, {"LICENSE": "MIT"})
    steps = [carry(source, f"t.{i}") for i in range(5)]
    steps.insert(2, Step(moves=(move(source, "m", (256, 64), DENSE, INT4),)))
    made = plan(source, steps)

    def run(name, *, force=False, shards=None):
        return build(
            made, {"source": source}, tmp_path / name, workers=1, check="off", force=force, max_shard_bytes=shards
        )

    return run


def files(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


@pytest.mark.parametrize(("old", "exchange"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_effect_leaves_all_or_nothing_and_resumes(*, job, tmp_path, monkeypatch, after, old, exchange):
    if not exchange:
        monkeypatch.setattr(effects, "_renameat2", lambda *_: False)
    whole = files(job("whole", shards=3000).path)
    replaced = files(job("replaced").path)
    assert whole != replaced
    for n in range(1, 400):
        out = tmp_path / f"draft-{n}"
        if old:
            job(out.name)

        def mortal(out=out, n=n):
            Mortal(n, after=after)
            job(out.name, force=old, shards=3000)

        status = in_child(mortal)
        assert status in {COMPLETE, KILLED}
        appeared = files(out) if out.exists() else None
        assert appeared in ([whole, replaced] if old else [whole, None])
        if appeared != whole:
            assert files(job(out.name, force=old, shards=3000).path) == whole
            assert not (tmp_path / f".{out.name}.mtpforge-tmp").exists()
        if status == COMPLETE:
            break
    assert status == COMPLETE
    assert n > 30


@pytest.mark.parametrize("seed", range(4))
def test_power_cut_at_any_effect_leaves_all_or_nothing(job, tmp_path, seed):
    whole = files(job("whole").path)
    for n in range(1, 400):
        out = tmp_path / f"draft-{n}"

        def mortal(out=out, n=n):
            Mortal(n, after=True, seed=1000 * seed + n)
            job(out.name)

        status = in_child(mortal)
        assert status in {COMPLETE, KILLED}
        if out.exists():
            assert files(out) == whole
        else:
            assert files(job(out.name).path) == whole
        if status == COMPLETE:
            break
    assert status == COMPLETE


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_kill_minus_nine_at_a_random_moment(job, tmp_path, seed):
    whole = files(job("whole").path)
    put = effects.put

    def slowly():
        effects.put = lambda *a: (time.sleep(0.01), put(*a))
        job("draft")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        slowly()
        os._exit(COMPLETE)
    time.sleep(random.Random(seed).uniform(0.01, 0.15))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not (tmp_path / "draft").exists() or files(tmp_path / "draft") == whole
    if not (tmp_path / "draft").exists():
        assert files(job("draft").path) == whole


def test_child_of_this_test_computes_what_the_parent_does():
    assert in_child(lambda: torch.equal(torch.arange(3), torch.tensor([0, 1, 2])) or os._exit(1)) == COMPLETE
