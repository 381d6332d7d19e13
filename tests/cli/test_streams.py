"""Where the output goes: a reader that leaves, a full disk, descriptors that are closed from the start."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest

NO_ROOM = "error: stdout cannot be written\ncause: No space left on device\n"
CLOSED = "error: stdout cannot be written\ncause: Bad file descriptor\n"


@pytest.fixture
def shell(tinyglm):
    """One command line of a shell, `mtpforge inspect` of a source with what stands behind it: code, stdout, stderr."""

    def shell_(behind: str, command: str = "") -> tuple[int, str, str]:
        words = command or f"inspect {shlex.quote(str(tinyglm('nvfp4')))}"
        line = f"{shlex.quote(sys.executable)} -m mtpforge {words} {behind}"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return shell_


def test_reader_that_leaves_after_a_line_is_no_bug(shell):
    code, out, err = shell("| head -1; exit ${PIPESTATUS[0]}")
    assert (code, err) == (141, "")
    assert out.count("\n") == 1


def test_build_whose_reader_left_makes_nothing(shell, tinyglm, tmp_path):
    # `true` has left long before the first line
    pair = f"--target {tinyglm('awq-int4')} --source {tinyglm('nvfp4')} -o {tmp_path / 'draft'}"
    code, _, err = shell("| true; exit ${PIPESTATUS[0]}", f"build {pair}")
    assert (code, err) == (141, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", ["", "--json", "-q"])
def test_stdout_without_room_is_this_machine_s_fault(shell, tinyglm, options):
    code, _, err = shell(">/dev/full", f"inspect {tinyglm('nvfp4')} {options}")
    assert code == 5
    assert err.startswith(NO_ROOM)
    assert err.count("error") == 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize("words", ["--help", "inspect --help", "--version", "doctor --json"])
def test_help_and_versions_without_room_are_told_too(shell, words):
    code, _, err = shell(">/dev/full", words)
    assert (code, err.count("error")) == (5, 1)


def test_closed_stdout_is_one_paragraph(shell):
    code, _, err = shell(">&-")
    assert code == 5
    assert err.startswith(CLOSED)
    assert err.count("\n") == 3


def test_error_is_told_where_stdout_is_closed(shell):
    code, _, err = shell(">&-", "inspect ./nothing-here --json")
    assert code == 3
    assert err.startswith("error: `./nothing-here` is no checkpoint\n")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("behind", ["2>&-", "2>/dev/full", "<&- 2>&-", "2> >(true)"])
def test_stderr_that_takes_nothing_changes_no_code(shell, tinyglm, behind):
    code, out, _ = shell(behind, f"inspect {tinyglm('nvfp4')} --json")
    assert code == 0
    assert json.loads(out)["ok"]
    code, out, _ = shell(behind)
    assert code == 0
    assert "glm_moe_dsa" in out


def test_everything_closed_still_ends_with_a_code(shell):
    assert shell("<&- >&- 2>&-")[0] == 5


@pytest.mark.slow
def test_text_for_stdout_lands_in_no_file_of_the_build(shell, tinyglm, tmp_path):
    """A closed descriptor 1 would be the number of the first file that is opened: the lock, or the weights."""
    pair = f"--target {tinyglm('awq-int4')} --source {tinyglm('nvfp4')} --check off -o {tmp_path / 'draft'}"
    assert shell(">&-", f"build {pair} -q")[0] == 5  # only its last word needs stdout
    assert shell("", f"verify {tmp_path / 'draft'} --target {tinyglm('awq-int4')}")[0] == 0
