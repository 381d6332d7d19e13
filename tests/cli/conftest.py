"""One command line, run in this process: exit code and both streams."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mtpforge.cli import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict:
        """The one JSON document; anything around it fails."""
        return json.loads(self.out)


@pytest.fixture
def run(capfd, monkeypatch) -> Callable[..., Ran]:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", *(n for n in os.environ if n.startswith("MTPFORGE_"))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    before = signal.getsignal(signal.SIGTERM)

    def run_(*argv: str) -> Ran:
        code = main([str(word) for word in argv])
        assert signal.getsignal(signal.SIGTERM) == before
        return Ran(code, *capfd.readouterr())

    return run_


@pytest.fixture
def in_folder(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """The folder in which `mtpforge demo` was run."""
    folder, before = tmp_path_factory.mktemp("demo"), Path.cwd()
    os.chdir(folder)
    try:
        assert main(["demo", "-q"]) == 0
    finally:
        os.chdir(before)
    return folder
