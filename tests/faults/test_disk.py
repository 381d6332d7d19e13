"""A disk that is full, read-only, forbidden or broken, a source that goes away: a clear error, and it goes on after."""

from __future__ import annotations

import errno
import json
import os

import pytest
from faults.killing import files, hidden
from small_plans import DENSE, INT4, carry, checkpoint, move, plan, weight

from mtpforge.building import build
from mtpforge.checkpoint import folder_files as source_files
from mtpforge.checkpoint import open_checkpoint
from mtpforge.durable import effects
from mtpforge.errors import MtpforgeError
from mtpforge.planning.steps import Step
from mtpforge.tensors import Spec
from mtpforge.writing import folder
from mtpforge.writing.layout import place

FULL = "the disk is full", "free some, or choose another disk with `--out`"
REFUSED = "cannot write the draft", "choose a folder that you may write to with `--out`"
SAID = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EROFS: REFUSED,
    errno.EACCES: REFUSED,
    errno.EPERM: REFUSED,
    errno.EIO: REFUSED,
}


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "BATCH_BYTES", 1000)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    tensors = {f"t.{i}": weight(4, 64, i) for i in range(3)} | {"m.weight": weight(32, 64, 9)}
    source = checkpoint(tmp_path / "source", tensors, {"LICENSE": "MIT"})
    steps = [carry(source, f"t.{i}") for i in range(3)]
    steps.insert(1, Step(moves=(move(source, "m", (32, 64), DENSE, INT4),)))
    made = plan(source, steps)

    def run(out, given=None, **options):
        return files(build(made, {"source": given or source}, out, workers=1, check="off", **options).path)

    return run


class Failing:
    """One of the five functions refuses from its n-th call on, until the disk is mended."""

    def __init__(self, patch, name, n, number, *, times=10**6):
        self.left, self.times, real = n, times, getattr(effects, name)

        def effect(*args):
            self.left -= 1
            if self.left < 0 and self.times > 0:
                self.times -= 1
                raise OSError(number, os.strerror(number))
            return real(*args)

        patch.setattr(effects, name, effect)


def outcome(run, *args, **options):
    """The error of a build, None if it made a draft."""
    try:
        run(*args, **options)
    except MtpforgeError as error:
        return error
    return None


def refusal(run, *args, **options):
    with pytest.raises(MtpforgeError) as caught:
        run(*args, **options)
    return caught.value


@pytest.mark.parametrize("name", ["allocate", "put", "append", "sync", "publish"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_disk_that_refuses_anything_is_named_and_the_same_command_goes_on(job, tmp_path, monkeypatch, name, number):
    whole = job(tmp_path / "whole" / "draft")
    for n in range(100):
        out = tmp_path / str(n) / "draft"
        with monkeypatch.context() as patch:
            failing = Failing(patch, name, n, number)
            error = outcome(job, out)
        if error is None:
            assert files(out) == whole
            break
        assert (error.what, error.fix, error.code) == (*SAID[number], 5)
        assert os.strerror(number) in error.why
        assert str(out.parent) in error.where
        assert failing.left < 0
        if out.exists():  # all was written, and only the last fsync failed
            assert files(out) == whole
            assert refusal(job, out).what == "the output exists already"
        else:
            assert job(out) == whole
        assert not hidden(out).exists()
    assert n > 0


@pytest.mark.parametrize("number", list(SAID), ids=lambda n: errno.errorcode[n])
def test_every_refusal_of_a_disk_has_its_words(job, tmp_path, monkeypatch, number):
    Failing(monkeypatch, "allocate", 0, number)
    error = refusal(job, tmp_path / "draft")
    assert (error.what, error.fix, error.code) == (*SAID[number], 5)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_full_disk_keeps_what_was_finished(job, tmp_path, monkeypatch):
    out = tmp_path / "draft"
    with monkeypatch.context() as patch:
        Failing(patch, "put", 7, errno.ENOSPC)
        refusal(job, out)
    lines = [json.loads(line) for line in (hidden(out) / "journal").read_text().splitlines()[1:]]
    finished = {name for line in lines for name in line["sha256"]}
    assert len(finished) > 3
    put = []
    monkeypatch.setattr(folder.DraftFolder, "put", noting(folder.DraftFolder.put, put))
    job(out)
    assert put
    assert not finished & set(put)


def noting(real, names):
    def put(draft, name, *args):
        names.append(name)
        real(draft, name, *args)

    return put


def shut(draft):
    """Nothing more may be said to be finished."""
    draft.put("b", 0, memoryview(b"efgh"))
    assert refusal(draft.finish, 1, {"b": "d"}, 4).code == 5
    draft.abandon(keep=True)
    return (draft.path.parent / "journal").read_bytes().splitlines(keepends=True)[1:]


@pytest.fixture
def draft(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "BATCH_BYTES", 4)
    layouts = place({"a": Spec("U8", (4,)), "b": Spec("U8", (4,))}.items())
    draft = folder.DraftFolder(tmp_path / "draft", "k", layouts)
    draft.put("a", 0, memoryview(b"abcd"))
    return draft


def test_pages_that_an_fsync_lost_are_not_vouched_for_by_the_next_one(draft, monkeypatch):
    """The system reports lost pages once; the next fsync of the same file succeeds without them."""
    Failing(monkeypatch, "sync", 0, errno.EIO, times=1)
    assert refusal(draft.finish, 0, {"a": "d"}, 4).code == 5
    assert shut(draft) == []


def test_nothing_is_written_behind_a_journal_line_that_was_cut_short(draft, monkeypatch):
    real = effects.append

    def half(fd, line):
        monkeypatch.setattr(effects, "append", real)
        real(fd, line[: len(line) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(effects, "append", half)
    assert refusal(draft.finish, 0, {"a": "d"}, 4).code == 5
    (torn,) = shut(draft)
    assert not torn.endswith(b"\n")


class Troubled:
    """A checkpoint to whose file something happens after some reads."""

    def __init__(self, checkpoint, happens, *, after):
        self.checkpoint, self.happens, self.left = checkpoint, happens, after

    def __getattr__(self, name):
        return getattr(self.checkpoint, name)

    def read(self, ref, into):
        self.left -= 1
        if self.left == 0:
            self.happens()
        self.checkpoint.read(ref, into)


def test_source_that_vanishes_is_named_and_finished_steps_wait_for_it(job, tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, "MAX_OPEN_FILES", 0)  # a file that stays open cannot vanish
    whole = job(tmp_path / "whole" / "draft")
    weights, out = tmp_path / "source" / "model.safetensors", tmp_path / "draft"
    source = Troubled(open_checkpoint(str(tmp_path / "source")), lambda: weights.rename(tmp_path / "away"), after=3)
    error = refusal(job, out, source)
    assert (error.what, error.code) == (f"`{weights}` cannot be read", 5)
    assert error.why == "No such file or directory"
    assert (hidden(out) / "journal").read_text().count('"step":') == 2
    (tmp_path / "away").rename(weights)
    assert job(out) == whole


def test_source_that_changes_is_named_and_nothing_of_both_is_mixed(job, tmp_path):
    whole = job(tmp_path / "whole" / "draft")
    weights, out = tmp_path / "source" / "model.safetensors", tmp_path / "draft"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    assert bytes(raw) != weights.read_bytes()
    source = Troubled(open_checkpoint(str(tmp_path / "source")), lambda: weights.write_bytes(raw), after=3)
    error = refusal(job, out, source)
    assert (error.what, error.code) == ("`model.safetensors` changed while it was being used", 3)
    assert error.fix == "wait until nothing writes to the folder, then run the command again"
    assert not out.exists()
    assert not hidden(out).exists()
    again = open_checkpoint(str(tmp_path / "source"))
    changed = job(out, again)
    assert changed == job(tmp_path / "clean" / "draft", again)
    assert changed != whole


def test_source_that_was_cut_between_plan_and_build_is_named(job, tmp_path):
    weights = tmp_path / "source" / "model.safetensors"
    n_bytes = weights.stat().st_size
    os.truncate(weights, n_bytes - 4)
    error = refusal(job, tmp_path / "draft")
    assert (error.what, error.code) == ("`model.safetensors` changed while it was being used", 3)
    assert error.why == f"since its header was read, its size went from {n_bytes:,} to {n_bytes - 4:,} bytes"
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
