"""The writer against the library's own file, and against what a disk and other processes may do."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from mtpforge.durable import effects
from mtpforge.errors import MtpforgeError
from mtpforge.tensors import Spec
from mtpforge.writing import folder
from mtpforge.writing.folder import DraftFolder
from mtpforge.writing.layout import index, place

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
}


def tensor(spec, seed=0):
    raw = torch.randint(0, 2, (max(spec.n_bytes, 1),), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return raw[: spec.n_bytes].view(DTYPES[spec.dtype]).view(spec.shape)


def raw(value):
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().data


def write(out, tensors, *, max_shard_bytes=None, force=False, key="k"):
    specs = {name: spec for name, (spec, _) in tensors.items()}
    layouts = place(specs.items(), max_shard_bytes)
    draft = DraftFolder(out, key, layouts, force=force)
    for step, (name, (_, value)) in enumerate(tensors.items()):
        draft.put(name, 0, raw(value))
        draft.finish(step, {name: "x"}, len(raw(value)))
    draft.write_file("mtpforge.json", b"{}\n")
    draft.commit()


def some(n=40, seed=1):
    random.seed(seed)
    specs = {
        f"t.{i}.weight": Spec(random.choice(list(DTYPES)), random.choice([(3, 5), (7,), (), (0, 4)])) for i in range(n)
    }
    return {name: (spec, tensor(spec, i)) for i, (name, spec) in enumerate(specs.items())}


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
specs = st.builds(Spec, st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 3), max_size=3).map(tuple))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, specs, min_size=1, max_size=12))
def test_header_and_offsets_are_those_of_the_library(wanted):
    library = save({name: tensor(spec) for name, spec in wanted.items()}, metadata={"format": "pt"})
    (shard,) = place(wanted.items())
    assert shard.header == library[: len(shard.header)]
    assert shard.n_bytes == len(library)


def test_one_file_equals_save_file(tmp_path):
    tensors = some()
    save_file({n: v for n, (_, v) in tensors.items()}, tmp_path / "library.safetensors", metadata={"format": "pt"})
    write(tmp_path / "draft", tensors)
    assert (tmp_path / "draft" / "model.safetensors").read_bytes() == (tmp_path / "library.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["draft", "library.safetensors"]


def test_shards_equal_save_file_and_keep_the_maximum(tmp_path):
    tensors = some()
    write(tmp_path / "draft", tensors, max_shard_bytes=100)
    shards = sorted((tmp_path / "draft").glob("*.safetensors"))
    assert len(shards) > 2
    assert [s.name for s in shards] == [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    held = set()
    for shard in shards:
        with safe_open(shard, "pt") as file:
            mine = set(file.keys())
        save_file({n: tensors[n][1] for n in mine}, tmp_path / "library", metadata={"format": "pt"})
        assert shard.read_bytes() == (tmp_path / "library").read_bytes()
        assert sum(tensors[n][0].n_bytes for n in mine) <= 100 or len(mine) == 1
        held |= mine
    assert held == set(tensors)


def test_index_names_every_tensor_of_the_layer_and_its_bytes():
    wanted = {"b": Spec("F32", (4,)), "a": Spec("BF16", (4,))}
    body = json.loads(index(place(wanted.items(), 16), wanted))
    assert body == {
        "metadata": {"total_size": 24},
        "weight_map": {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"},
    }


def test_tensor_above_the_maximum_gets_a_file_of_its_own():
    shards = place({"a": Spec("U8", (5,)), "b": Spec("U8", (50,)), "c": Spec("U8", (5,))}.items(), 10)
    assert [set(s.starts) for s in shards] == [{"a"}, {"b"}, {"c"}]


@pytest.mark.parametrize("fill", [None, "mtpforge.json", "mine.txt"])
def test_existing_output_is_refused_and_untouched(tmp_path, fill):
    out = tmp_path / "draft"
    out.mkdir()
    if fill:
        (out / fill).write_text("mine")
    with pytest.raises(MtpforgeError) as refused:
        write(out, some(3))
    foreign = (
        f"error: the output exists and is no draft\nwhere: {out}\n"
        "cause: only folders that hold mtpforge.json are replaced\n"
        " hint: remove it yourself, or choose another output with `--out`"
    )
    ours = (
        f"error: the output exists already\nwhere: {out}\n"
        "cause: it was not there when this build was planned: another build wrote it meanwhile\n"
        " hint: `--force` replaces it, `--out` chooses another"
    )
    assert str(refused.value) == (foreign if fill == "mine.txt" else ours)
    assert refused.value.code == 5
    assert [p.name for p in tmp_path.iterdir()] == ["draft"]
    assert [p.name for p in out.iterdir()] == ([fill] if fill else [])


def test_output_that_appears_during_the_build_is_not_replaced(tmp_path):
    out = tmp_path / "draft"
    draft = DraftFolder(out, "k", place({"a": Spec("U8", (1,))}.items()))
    out.mkdir()  # empty: os.rename would replace it without a word
    with pytest.raises(MtpforgeError, match="the output exists already"):
        draft.commit()
    draft.abandon(keep=False)
    assert [p.name for p in tmp_path.iterdir()] == ["draft"]
    assert not any(out.iterdir())


@pytest.mark.parametrize("exchange", [True, False])
def test_force_swaps_at_the_very_end(tmp_path, monkeypatch, exchange):
    out = tmp_path / "draft"
    write(out, some(3))
    old = (out / "model.safetensors").read_bytes()
    if not exchange:
        monkeypatch.setattr(effects, "_renameat2", lambda *_: False)
    seen = []
    publish = effects.publish
    monkeypatch.setattr(
        effects, "publish", lambda *a: (seen.append((out / "model.safetensors").read_bytes()), publish(*a))
    )
    write(out, some(4), force=True)
    assert seen == [old]
    assert (out / "model.safetensors").read_bytes() != old
    assert [p.name for p in tmp_path.iterdir()] == ["draft"]


def test_force_puts_the_old_draft_back_after_a_crash_between_two_renames(tmp_path, monkeypatch):
    out = tmp_path / "draft"
    write(out, some(3))
    old = (out / "model.safetensors").read_bytes()
    hidden = tmp_path / ".draft.mtpforge-tmp"
    hidden.mkdir()
    out.rename(hidden / "replaced")
    with pytest.raises(MtpforgeError, match="the output exists already"):
        write(out, some(4))
    assert (out / "model.safetensors").read_bytes() == old


def test_force_does_not_replace_a_folder_that_is_no_draft(tmp_path):
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(MtpforgeError, match="the output exists and is no draft"):
        write(out, some(3), force=True)
    assert (out / "thesis.tex").read_text() == "mine"


def test_second_build_of_the_same_output_hears_who_holds_it(tmp_path):
    out = tmp_path / "draft"
    first = DraftFolder(out, "k", place({"a": Spec("U8", (1,))}.items()))
    with pytest.raises(MtpforgeError) as refused:
        write(out, some(3))
    assert refused.value.why == f"process {os.getpid()} on {os.uname().nodename} holds the lock"
    assert refused.value.code == 5
    first.abandon(keep=False)
    write(out, some(3))


def test_lock_of_a_dead_process_is_free(tmp_path):
    out = tmp_path / "draft"
    script = (
        "import os; from pathlib import Path; from mtpforge.writing import claim\n"
        f"claim.take(Path({str(out)!r})); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert (tmp_path / ".draft.mtpforge-tmp" / "lock").exists()
    write(out, some(3))
    assert [p.name for p in tmp_path.iterdir()] == ["draft"]


def test_full_disk_shows_before_the_first_weight(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MtpforgeError) as refused:
        DraftFolder(tmp_path / "draft", "k", place({"a": Spec("U8", (1,))}.items()))
    assert (refused.value.what, refused.value.code) == ("the disk is full", 5)
    assert not list(tmp_path.iterdir())


def test_folder_that_may_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MtpforgeError) as refused:
        write(tmp_path / "file" / "draft", some(1))
    assert (refused.value.what, refused.value.code) == ("cannot write the draft", 5)
    assert str(tmp_path / "file") in refused.value.why


def test_finished_steps_survive_and_another_plan_starts_afresh(tmp_path):
    out, layouts = tmp_path / "draft", place({"a": Spec("U8", (4,))}.items())
    first = DraftFolder(out, "k", layouts)
    first.put("a", 0, memoryview(b"abcd"))
    first.finish(0, {"a": "digest"}, 4)
    first.abandon(keep=True)
    again = DraftFolder(out, "k", layouts)
    assert again.finished == {0: {"a": "digest"}}
    assert again.sha256("a", Spec("U8", (4,))) == "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"
    again.abandon(keep=True)
    other = DraftFolder(out, "other", layouts)
    assert other.finished == {}
    assert other.sha256("a", Spec("U8", (4,))) == "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119"
    other.abandon(keep=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tail", [b'{"step":1,"sha2', b'{"step":1}\n', b"\x00\x00\x00\n", b'["step"]\n'])
def test_torn_last_line_of_the_journal_is_cut_off(tmp_path, tail):
    out, layouts = tmp_path / "draft", place({"a": Spec("U8", (4,))}.items())
    first = DraftFolder(out, "k", layouts)
    first.finish(0, {"a": "d"}, 4)
    first.abandon(keep=True)
    path = tmp_path / ".draft.mtpforge-tmp" / "journal"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    again = DraftFolder(out, "k", layouts)
    assert again.finished == {0: {"a": "d"}}
    assert path.read_bytes() == whole
    again.abandon(keep=False)


def test_files_of_an_older_draft_do_not_travel_with_the_new_one(tmp_path):
    out, layouts = tmp_path / "draft", place({"a": Spec("U8", (4,))}.items())
    first = DraftFolder(out, "k", layouts)
    first.finish(0, {"a": "d"}, 4)
    (first.path / "leftover").mkdir()
    (first.path / "model-00001-of-00002.safetensors").write_text("old")
    first.abandon(keep=True)
    DraftFolder(out, "k", layouts).commit()
    assert [p.name for p in out.iterdir()] == ["model.safetensors"]


def test_journal_speaks_of_data_only_after_it_is_durable(tmp_path, monkeypatch):
    story = []
    for name in ("append", "sync"):
        real = getattr(effects, name)
        monkeypatch.setattr(
            effects,
            name,
            lambda fd, *a, n=name, r=real: (story.append((n, str(Path(f"/proc/self/fd/{fd}").readlink()))), r(fd, *a)),
        )
    monkeypatch.setattr(folder, "BATCH_BYTES", 4)
    draft = DraftFolder(tmp_path / "draft", "k", place({"a": Spec("U8", (4,))}.items()))
    story.clear()
    draft.finish(0, {"a": "d"}, 4)
    weights, journal = str(draft.path / "model.safetensors"), str(draft.path.parent / "journal")
    assert story == [("sync", weights), ("append", journal), ("sync", journal)]
    draft.abandon(keep=False)


def test_free_disk_counts_what_an_interrupted_build_holds(tmp_path, monkeypatch):
    out = tmp_path / "draft"
    monkeypatch.setattr(os, "statvfs", lambda _: type("D", (), {"f_bavail": 10, "f_frsize": 100})())
    assert folder.room(out) == 1000
    first = DraftFolder(out, "k", place({"a": Spec("U8", (8192,))}.items()))
    first.finish(0, {"a": "d"}, 4)
    first.abandon(keep=True)
    assert folder.room(out) >= 1000 + 8192
