"""Inputs files: what is written is read again, and what is odd is refused before anything is computed from it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mtpforge.errors import MtpforgeError
from mtpforge.nextn import inputs, recording
from mtpforge.nextn.inputs import Sequence

META = {"format": "mtpforge-inputs-1", "target": "somebody's"}


def sequence(n, first=0, width=8):
    hidden = torch.arange(n * width).reshape(n, width) / 7 + first
    return Sequence(torch.arange(n) + 3, torch.arange(first, first + n), hidden)


def tensors(n=5, width=8, starts=(0, 2, 5)):
    """A file as anybody may write it, by name."""
    positions = torch.cat([torch.arange(b - a) for a, b in pairwise(starts)])
    return {
        "hidden_states": torch.arange(n * width).reshape(n, width).bfloat16(),
        "token_ids": torch.arange(n),
        "positions": positions,
        "sequence_starts": torch.tensor(starts),
    }


@pytest.fixture
def file(tmp_path):
    def save(change=None, meta=META):
        made = tensors()
        if change:
            change(made)
        save_file(made, tmp_path / "inputs.safetensors", meta)
        return tmp_path / "inputs.safetensors"

    return save


def refusal(path, **known):
    with pytest.raises(MtpforgeError) as error:
        list(inputs.read(path, **known))
    assert error.value.where.startswith(str(path))
    assert error.value.code == 3
    return f"{error.value.where}: {error.value.why}"


# Writing


def test_library_reads_what_is_written(tmp_path):
    path, written = tmp_path / "made.safetensors", [sequence(5), sequence(1, 9), sequence(3)]
    inputs.write(path, iter(written), target="org/name@1", dtype="F32")
    found = load_file(path)
    assert torch.equal(found["hidden_states"], torch.cat([s.hidden for s in written]))
    assert torch.equal(found["token_ids"], torch.cat([s.token_ids for s in written]))
    assert found["positions"].tolist() == [0, 1, 2, 3, 4, 9, 0, 1, 2]
    assert found["sequence_starts"].tolist() == [0, 5, 6, 9]
    assert {t.dtype for n, t in found.items() if n != "hidden_states"} == {torch.int64}
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "mtpforge-inputs-1", "target": "org/name@1"}


def test_states_are_rounded_to_bf16_as_torch_rounds(tmp_path):
    inputs.write(tmp_path / "made", [sequence(4)], target="")
    assert torch.equal(load_file(tmp_path / "made")["hidden_states"], sequence(4).hidden.bfloat16())


def test_sequences_come_back_one_by_one(tmp_path):
    written = [sequence(2), sequence(7, 100)]
    inputs.write(tmp_path / "made", written, target="org/name", dtype="F32")
    found = inputs.read(tmp_path / "made")
    assert (found.n_tokens, found.n_sequences, found.hidden_size, found.target) == (9, 2, 8, "org/name")
    for mine, theirs in zip(found, written, strict=True):
        assert torch.equal(mine.hidden, theirs.hidden)
        assert mine.hidden.dtype == torch.float32
        assert torch.equal(mine.positions, theirs.positions)
        assert torch.equal(mine.token_ids, theirs.token_ids)
    assert found.digest == hashlib.sha256((tmp_path / "made").read_bytes()).hexdigest()


def test_file_of_the_library_is_read_too(file):
    def narrow(made):
        made["token_ids"] = made["token_ids"].int()
        made["hidden_states"] = made["hidden_states"].float()

    first, second = inputs.read(file(narrow))
    assert (first.token_ids.tolist(), first.token_ids.dtype) == ([0, 1], torch.int64)
    assert torch.equal(second.hidden, torch.arange(16, 40).reshape(3, 8).float())


def test_existing_file_stays_unless_forced(tmp_path):
    path = tmp_path / "made"
    path.write_text("mine")
    with pytest.raises(MtpforgeError) as error:
        inputs.write(path, [sequence(2)], target="")
    assert (str(error.value.what), error.value.code) == ("the output exists already", 5)
    assert path.read_text() == "mine"
    with pytest.raises(MtpforgeError, match="holds no calibration inputs"):
        inputs.write(path, [sequence(2)], target="", force=True)
    assert path.read_text() == "mine"
    path.unlink()
    inputs.write(path, [sequence(3)], target="")
    inputs.write(path, [sequence(2)], target="", force=True)
    assert inputs.read(path).n_tokens == 2
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_rows_that_a_reader_would_refuse_as_too_large_are_not_written(tmp_path):
    good = sequence(2)
    large = inputs.Sequence(good.token_ids, good.positions, torch.full_like(good.hidden, 3e38))
    with pytest.raises(MtpforgeError, match="holds no calibration inputs") as error:
        inputs.write(tmp_path / "made", [good, large], target="")
    assert error.value.why == "row 0 of sequence 1 is too large for a norm"
    assert list(tmp_path.iterdir()) == []


def bad(**parts):
    good = sequence(2)
    return Sequence(**{n: parts.get(n, getattr(good, n)) for n in ("token_ids", "positions", "hidden")})


@pytest.mark.parametrize(
    ("sequences", "why"),
    [
        ([], "there is no sequence to write"),
        ([bad(token_ids=torch.tensor([1]))], "a sequence needs as many of each"),
        ([bad(token_ids=torch.tensor([1, -4]))], "token id -4 is negative"),
        ([bad(token_ids=torch.tensor([1, 2]).int())], "token ids are torch.int32"),
        ([bad(positions=torch.tensor([1, 3]))], "positions must begin at 0 or later and rise by one"),
        ([bad(positions=torch.tensor([-1, 0]))], "positions must begin at 0 or later and rise by one"),
        ([bad(hidden=torch.full((2, 8), torch.nan))], "sequence 0 holds values that are no numbers"),
        ([sequence(2), bad(hidden=torch.full((2, 8), 3.4e38))], "sequence 1 holds values that are no numbers"),
        ([sequence(2), sequence(2, width=16)], "one sequence has 8 columns, another 16"),
        ([sequence(1, width=6)], "hidden states of 6 columns do not fill whole words"),
    ],
)
def test_rows_that_could_not_be_read_are_not_written(tmp_path, sequences, why):
    with pytest.raises(MtpforgeError, match="no calibration inputs") as error:
        inputs.write(tmp_path / "made", sequences, target="")
    assert error.value.why.startswith(why)
    assert list(tmp_path.iterdir()) == []


def test_failure_on_the_way_leaves_nothing(tmp_path):
    def half():
        yield sequence(3)
        raise RuntimeError("power")

    with pytest.raises(RuntimeError):
        inputs.write(tmp_path / "made", half(), target="")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from mtpforge.nextn import inputs
path, seen = Path(sys.argv[1]), []

def write(n_rows, target):
    rows = [inputs.Sequence(torch.arange(n_rows), torch.arange(n_rows), torch.ones(n_rows, 8)) for _ in range(2)]
    inputs.write(path, rows, target=target, force=True)

def die_before(n):
    calls = [0]
    def counted(real):
        def call(*args, **kwargs):
            calls[0] += 1
            if calls[0] == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in ("pwrite", "fsync", "ftruncate", "rename"):
        setattr(os, name, counted(getattr(os, name)))

while not seen or seen[-1][0]:
    write(3, "before")
    if not (child := os.fork()):
        die_before(len(seen) + 1)
        write(4, "after")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = inputs.read(path)
    seen.append((code, found.target, sum(len(one.token_ids) for one in found)))
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    """A kill before the n-th call that changes the disk, for every n; what is left does not disturb the next writer."""
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "made"], capture_output=True, text=True, check=True)
    *killed, last = json.loads(done.stdout)
    assert last == [0, "after", 8]
    assert len(killed) > 7
    assert {code for code, _, _ in killed} == {-signal.SIGKILL}
    assert [tuple(rest) for _, *rest in killed] == [("before", 6)] * (len(killed) - 1) + [("after", 8)]


def test_second_writer_is_told_of_the_first(tmp_path):
    def nested():
        yield sequence(2)
        with pytest.raises(MtpforgeError, match="another process writes this file"):
            inputs.write(tmp_path / "made", [sequence(1)], target="")

    inputs.write(tmp_path / "made", nested(), target="")
    assert inputs.read(tmp_path / "made").n_tokens == 2


def test_small_disk_is_refused_beforehand(tmp_path):
    with pytest.raises(MtpforgeError, match="not enough disk: 1000 PB are needed"):
        recording.refuse_small_disk(tmp_path / "sub" / "made", 10**18)


# Reading what others wrote


def put(name, value):
    def change(made):
        made[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.pop("positions"), "it has no tensor `positions`"),
        (lambda m: m.pop("hidden_states"), "it has no tensor `hidden_states`"),
        (put("extra", torch.zeros(1)), "it has a tensor `extra`, which is none of hidden_states, token_ids"),
        (put("hidden_states", torch.zeros(5, 8).half()), "tensor hidden_states: it is F16, not BF16 or F32"),
        (put("token_ids", torch.arange(5).float()), "tensor token_ids: it is F32, not I64 or I32"),
        (put("token_ids", torch.arange(6)), "tensor token_ids: its shape is [6], the hidden states have 5 rows"),
        (put("token_ids", torch.tensor([1, 2, 3, -9, 1])), "tensor token_ids: token id -9 is negative"),
        (put("positions", torch.tensor([0, 1, 0, 2, 3])), "tensor positions: positions must begin at 0 or later"),
        (put("positions", torch.tensor([0, 1, -1, 0, 1])), "tensor positions: positions must begin at 0 or later"),
        (put("positions", torch.tensor([0, 1, 2**63 - 2, 2**63 - 1, -(2**63)])), "tensor positions: positions must"),
        (put("hidden_states", torch.zeros(40).bfloat16()), "its shape is [40], not [n_tokens, hidden]"),
        (put("hidden_states", torch.zeros(0, 8).bfloat16()), "its shape is [0, 8], not [n_tokens, hidden]"),
        (put("sequence_starts", torch.tensor([0, 2, 4])), "boundaries must rise from 0 to 5"),
        (put("sequence_starts", torch.tensor([1, 2, 5])), "boundaries must rise from 0 to 5"),
        (put("sequence_starts", torch.tensor([0, 5, 5])), "boundaries must rise from 0 to 5"),
        (put("sequence_starts", torch.tensor([0, 7, 5])), "boundaries must rise from 0 to 5"),
        (put("sequence_starts", torch.tensor([0, -(2**63), 5])), "boundaries must rise from 0 to 5"),
        (put("sequence_starts", torch.tensor([5])), "its shape is [1], not [n_sequences + 1]"),
        (put("sequence_starts", torch.arange(7)), "its shape is [7], not [n_sequences + 1]"),
        (put("hidden_states", torch.full((5, 8), torch.inf).bfloat16()), "rows 0 to 2 hold values that are no numbers"),
    ],
)
def test_odd_file_is_refused(file, change, why):
    assert len(list(inputs.read(file()))) == 2
    assert why in refusal(file(change))


def test_nan_is_found_in_the_sequence_that_has_it(file):
    def change(made):
        made["hidden_states"][4, 3] = torch.nan

    opened = iter(inputs.read(file(change)))
    assert len(next(opened).hidden) == 2
    with pytest.raises(MtpforgeError) as error:
        next(opened)
    assert error.value.why == "rows 2 to 5 hold values that are no numbers"


def test_file_of_another_model_is_refused(file):
    path = file()
    assert len(list(inputs.read(path, hidden_size=8, vocab_size=5))) == 2
    assert "token id 4 lies beyond the vocabulary of 4" in refusal(path, vocab_size=4)
    assert "its hidden states have 8 columns, the model 16" in refusal(path, hidden_size=16)


@pytest.mark.parametrize("meta", [None, {"format": "pt"}])
def test_other_safetensors_file_is_no_inputs_file(file, meta):
    assert "metadata" in refusal(file(meta=meta))


@pytest.mark.parametrize(("row", "value"), [(3, 3e38), (4, -1e30), (2, 2e19)])
def test_row_that_a_norm_would_make_zeros_of_is_named(file, row, value):
    def change(made, by=value):
        made["hidden_states"] = made["hidden_states"].float()
        made["hidden_states"][row] = by

    def zeros(made):
        change(made, 0.0)

    norm = torch.nn.functional.rms_norm  # of torch, in float32
    large = torch.full((8,), value)
    assert bool(large.isfinite().all())
    assert not bool(norm(large, (8,)).any())
    assert len(list(inputs.read(file(zeros)))) == 2
    assert refusal(file(change)).endswith(f"row {row} is too large for float32 once it is squared")


def test_large_row_that_has_a_norm_is_read(file):
    def change(made):
        made["hidden_states"] = made["hidden_states"].float()
        made["hidden_states"][3] = 1e18

    assert float(list(inputs.read(file(change)))[1].hidden[1, 0]) == pytest.approx(1e18)


def test_folder_or_pipe_is_no_inputs_file(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, what in [
        (tmp_path / "folder", f"`{tmp_path}/folder` is a folder, inputs are one regular file"),
        (tmp_path / "pipe", f"`{tmp_path}/pipe` is no regular file, inputs are one regular file"),
        (Path(), "the name of the inputs file is empty, or `.`"),
    ]:
        with pytest.raises(MtpforgeError) as error:
            inputs.read(path)
        assert error.value.what == what


def test_absent_file_is_named(tmp_path):
    with pytest.raises(MtpforgeError) as error:
        inputs.read(tmp_path / "none")
    assert error.value.what == f"there is no inputs file `{tmp_path}/none`"


def test_sequence_longer_than_any_context_is_refused_before_it_is_read(tmp_path):
    """A sparse file claims it; nothing of its size is allocated."""
    n = (1 << 20) + 1
    specs = {"hidden_states": ("BF16", [n, 4]), "token_ids": ("I64", [n]), "positions": ("I64", [n])}
    specs["sequence_starts"] = ("I64", [2])
    entries, end = {"__metadata__": META}, 0
    for name, (dtype, shape) in specs.items():
        size = torch.Size(shape).numel() * (2 if dtype == "BF16" else 8)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(entries).encode()
    with (tmp_path / "long").open("wb") as opened:
        opened.write(len(head).to_bytes(8, "little") + head)
        opened.truncate(8 + len(head) + end)
        opened.seek(8 + len(head) + end - 8)
        opened.write(n.to_bytes(8, "little"))
    assert "a sequence has 1,048,577 tokens, at most 1,048,576 are read" in refusal(tmp_path / "long")


def test_file_cut_short_at_any_byte_is_an_error(file, tmp_path):
    whole = file().read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(MtpforgeError):
            list(inputs.read(tmp_path / "cut"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_byte_is_an_error_or_another_valid_file(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    save_file(tensors(), folder / "inputs", META)
    raw = bytearray((folder / "inputs").read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    (folder / "inputs").write_bytes(raw)
    try:
        found = list(inputs.read(folder / "inputs"))
    except MtpforgeError:
        return
    assert sum(len(s.token_ids) for s in found) == 5
    assert all(bool(s.hidden.isfinite().all()) and int(s.token_ids.min()) >= 0 for s in found)
