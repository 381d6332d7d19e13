"""The driver of the browser, and what brings one: silence ends, and what is missing is said."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from reporting import chromium

SCRIPT = Path(__file__).parents[2] / ".ci" / "chromium"


def pipes(answers):
    theirs, ours = os.pipe()
    os.write(ours, answers)
    return Path(os.devnull).open("wb"), os.fdopen(theirs, "rb", buffering=0), ours


def test_browser_that_says_nothing_more_is_given_up(monkeypatch):
    """Its first answer came, the second one breaks off."""
    monkeypatch.setattr(chromium, "DEADLINE", 0.2)
    out, back, ours = pipes(b'{"id": 1, "result": {"targetId": "t"}}\0{"method": "Page.frame')
    with out, back, pytest.raises(TimeoutError, match=r"not answer in 0[.]2 seconds: Target[.]attachTo"):
        chromium.Tab(out, back)
    os.close(ours)


def test_browser_that_is_gone_is_told_from_a_slow_one():
    out, back, ours = pipes(b"")
    os.close(ours)
    with out, back, pytest.raises(RuntimeError, match="the browser is gone"):
        chromium.Tab(out, back)


def fetched(tmp_path, **env):
    """The script where nothing but a shell is found."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "id").symlink_to(shutil.which("id"))
    env = {"PATH": str(tmp_path / "bin"), **env}
    return subprocess.run([shutil.which("bash"), SCRIPT], env=env, capture_output=True, text=True, check=False)


def test_no_way_to_a_browser_is_a_failure_that_says_so(tmp_path):
    ran = fetched(tmp_path)
    assert (ran.returncode, "CHROMIUM=none" in ran.stderr) == (1, True)


def test_installation_that_fails_is_seen_with_its_own_words(tmp_path):
    """apt-get stands for a machine whose packages are locked by another."""
    for name, does in (("apt-get", "echo E: locked >&2; exit 100"), ("id", "echo 0"), ("timeout", 'shift; exec "$@"')):
        file = tmp_path / name
        file.write_text(f"#!{shutil.which('bash')}\n{does}\n")
        file.chmod(0o755)
    env = {"PATH": str(tmp_path)}
    ran = subprocess.run([shutil.which("bash"), SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (100, "E: locked\n")


def test_doing_without_is_asked_for_by_name(tmp_path):
    assert fetched(tmp_path, CHROMIUM="none").returncode == 0
