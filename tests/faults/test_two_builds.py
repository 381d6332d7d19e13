"""Two builds to one output: one wins, the other says who holds it; what a dead one held is taken over."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults.killing import TOP, builder, files, hidden, said

from mtpforge.durable import files as durable_files
from mtpforge.errors import MtpforgeError
from mtpforge.writing import claim

CLAIM = """
import os, sys
from pathlib import Path
from mtpforge.durable import files as durable_files
from mtpforge.errors import MtpforgeError
from mtpforge.tensors import Spec
from mtpforge.writing.folder import DraftFolder
from mtpforge.writing.layout import place
sys.stdin.readline()
try:
    draft = DraftFolder(Path(sys.argv[1]), "k", place({"a": Spec("U8", (4,))}.items()))
    draft.put("a", 0, memoryview(b"abcd"))
    draft.commit()
    print("made it")
except MtpforgeError as error:
    print(error.what, error.code)
"""


@pytest.fixture(scope="module")
def demo():
    with builder() as order:
        yield order


@pytest.fixture(scope="module")
def whole(demo, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "draft"
    assert demo("end", out) == 0
    return files(out)


def test_second_build_names_the_process_that_holds_the_output_and_harms_nothing(demo, whole, tmp_path):
    out = tmp_path / "draft"
    holder = demo("hold", out)
    assert not out.exists()
    assert demo("end", out, "--force") == 5
    message = re.sub(r"\s+", " ", said(out))
    assert "another build writes to the same output" in message
    assert re.search(rf"process {holder} on \S+ holds the lock", message)
    assert demo("end-held") == 0
    assert files(out) == whole
    assert not hidden(out).exists()


def test_output_of_a_dead_process_is_taken_over_with_its_finished_steps(demo, whole, tmp_path):
    out = tmp_path / "draft"
    holder = demo("hold", out)
    assert demo("kill-held") == -signal.SIGKILL
    assert (hidden(out) / "lock").read_text().startswith(f"process {holder} ")
    assert (hidden(out) / "journal").read_text().count('"step":') > 5
    assert demo("end", out) == 0
    assert files(out) == whole
    assert not hidden(out).exists()


def test_lock_that_its_holder_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """Between our open and our lock the first build ended, and a third one made a lock of its own."""
    out, real, third = tmp_path / "draft", durable_files.fcntl.flock, []

    def late(fd, how):
        monkeypatch.setattr(durable_files.fcntl, "flock", real)
        (hidden(out) / "lock").unlink()
        third.append(claim.take(out))
        return real(fd, how)

    monkeypatch.setattr(durable_files.fcntl, "flock", late)
    with pytest.raises(MtpforgeError, match="another build writes to the same output"):
        claim.take(out)
    claim.release(third[0], keep=False)
    assert not any(tmp_path.iterdir())


def test_of_many_that_start_together_one_makes_the_draft(tmp_path):
    """Also while the first to end removes the lock that others have opened already."""
    out = tmp_path / "draft"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, out], cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    with ThreadPoolExecutor(len(children)) as pool:
        answers = sorted(answer for answer, _ in pool.map(lambda child: child.communicate("go\n"), children))
    assert answers.count("made it\n") == 1
    late = "the output exists and is no draft 5\n"  # these children write no manifest
    assert set(answers) <= {"made it\n", "another build writes to the same output 5\n", late}
    assert (out / "model.safetensors").read_bytes().endswith(b"abcd")
    assert [p.name for p in tmp_path.iterdir()] == ["draft"]
