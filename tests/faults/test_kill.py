"""Real processes that die: by os._exit beside the n-th effect, and by kill -9 at any moment.

What a power cut leaves, and every single change of the disk: `test_enumerated_kill.py`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings

import pytest
from faults.killing import builder, files, hidden
from small_plans import DENSE, INT4, carry, checkpoint, move, plan, weight

from mtpforge.building import build
from mtpforge.durable import effects
from mtpforge.durable import files as durable_files
from mtpforge.planning.steps import Step
from mtpforge.writing import folder

IS_LONG = bool(os.environ.get("MTPFORGE_LONG"))
COMPLETE, KILLED = 0, 9


class Mortal:
    """Wraps the five functions that change the disk: the process ends at call `last`, before or after it."""

    def __init__(self, last, *, after):
        self.left, self.after = last, after
        for name in ("allocate", "put", "append", "sync", "publish"):
            setattr(effects, name, self.wrapped(getattr(effects, name)))

    def wrapped(self, real):
        def effect(*args):
            self.left -= 1
            if self.left == 0 and not self.after:
                os._exit(KILLED)
            result = real(*args)
            if self.left == 0:
                os._exit(KILLED)
            return result

        return effect


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
    monkeypatch.setattr(folder, "BATCH_BYTES", 1000)
    monkeypatch.setattr(effects, "sync", lambda _: None)  # a process that dies loses no page cache; the test stays fast
    tensors = {f"t.{i}": weight(4, 64, i) for i in range(3)} | {"m.weight": weight(32, 64, 9)}
    source = checkpoint(tmp_path / "source", tensors, {"LICENSE": "MIT"})
    steps = [carry(source, f"t.{i}") for i in range(3)]
    steps.insert(1, Step(moves=(move(source, "m", (32, 64), DENSE, INT4),)))
    made = plan(source, steps)

    def run(name, *, force=False, shards=None):
        options = {"workers": 1, "check": "off", "force": force, "max_shard_bytes": shards}
        return build(made, {"source": source}, tmp_path / name, **options)

    return run


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("old", "exchange"), [(False, True), (True, True), (True, False)])
def test_process_that_ends_at_any_effect_leaves_all_or_nothing_and_the_next_goes_on(
    *, job, tmp_path, monkeypatch, old, exchange
):
    if not exchange:
        monkeypatch.setattr(effects, "_renameat2", lambda *_: False)
    whole, replaced = files(job("whole", shards=1000).path), files(job("replaced").path)
    assert whole != replaced
    deaths = 0
    for n in range(1, 400, 1 if IS_LONG else 3):
        out = tmp_path / f"draft-{n}"
        if old:
            job(out.name)

        def mortal(out=out, n=n):
            Mortal(n, after=n % 2 == 0)
            job(out.name, force=old, shards=1000)

        status = in_child(mortal)
        deaths += status == KILLED
        appeared = files(out) if out.exists() else None
        assert appeared in ([whole, replaced] if old else [whole, None])
        if appeared != whole:
            assert files(job(out.name, force=old, shards=1000).path) == whole
            assert not hidden(out).exists()
        if status == COMPLETE:
            break
        assert status == KILLED
    assert status == COMPLETE
    assert deaths > 10


@pytest.mark.slow
def test_kill_minus_nine_at_random_moments_of_the_demo(tmp_path):
    chance, wanted = random.Random(7), 60 if IS_LONG else 6
    figures = dict.fromkeys(("killed", "of these with steps to go on from", "too late"), 0)
    with builder() as demo:
        for name in ("cold", "warm"):
            (tmp_path / name).mkdir()
            began = time.monotonic()
            assert demo("end", tmp_path / name / "draft") == COMPLETE
        seconds, whole = time.monotonic() - began, files(tmp_path / "warm" / "draft")
        assert files(tmp_path / "cold" / "draft") == whole
        out = tmp_path / "draft"
        for _ in range(5 * wanted):
            status = demo("kill", chance.uniform(0, seconds), out)
            assert status in {-signal.SIGKILL, COMPLETE}
            assert files(out) == whole if out.exists() else status == -signal.SIGKILL
            figures["killed" if status else "too late"] += 1
            figures["of these with steps to go on from"] += n_journaled(out) > 0
            if not out.exists() and chance.random() < 0.5:
                continue  # the one that goes on is killed as well
            if not out.exists():
                assert demo("end", out) == COMPLETE
                assert files(out) == whole
                assert not hidden(out).exists()
            if figures["killed"] >= wanted:
                break
            durable_files.remove(out)
    sys.stdout.write(f"{figures}\n")
    assert figures["killed"] >= wanted


def n_journaled(out):
    journal = hidden(out) / "journal"
    return max(len(journal.read_bytes().splitlines()) - 1, 0) if journal.exists() else 0
