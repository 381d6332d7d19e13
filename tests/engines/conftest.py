"""For the engines' tests: interpreters that have imported their engine, and a target of which only config is known."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# SGLang's is none of them: a check in a fork of a process that has imported it finds its runtime context unset.
ENGINES = ("MTPFORGE_TEST_ENGINE_PYTHON",)
ITSELF = "_ITSELF"  # the same variable with this: the interpreter that was named


def pytest_configure(config):
    """From here on the interpreters that tests read from the environment are `engine_python.py`."""
    named = {name: os.environ.get(name + ITSELF) or os.environ.get(name) for name in ENGINES}
    for name, engine in named.items():
        if engine:
            home = tempfile.TemporaryDirectory(prefix="mtpforge-engine-")
            config.add_cleanup(home.cleanup)
            program = Path(home.name) / "python"
            words = (sys.executable, "-I", "-S", HERE / "engine_python.py", engine, Path(home.name) / "socket")
            program.write_text('#!/bin/sh\nexec {} "$@"\n'.format(" ".join(shlex.quote(str(word)) for word in words)))
            program.chmod(0o755)
            os.environ |= {name: str(program), name + ITSELF: engine}


def pytest_collection_finish(session):
    """Start `engine_server.py` where tests will ask engines; it ends when this process does."""
    asking = any(item.get_closest_marker("engine") for item in session.items)
    if asking and not session.config.option.collectonly:
        for name in ENGINES:
            if name + ITSELF in os.environ:
                session.config.add_cleanup(started(name))


def started(name):
    """How to end the server of one engine."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(Path(os.environ[name]).with_name("socket")))
        listener.listen()
        server = subprocess.Popen(
            [os.environ[name + ITSELF], HERE / "engine_server.py", str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )

    def end():
        server.stdin.close()
        server.wait()

    return end


@dataclass(frozen=True)
class ConfigOnly:
    """A checkpoint that is config and names alone; everything else would be an error to ask for."""

    config: Mapping[str, object]
    names: frozenset[str] = frozenset()
    label: str = "org/target"
    location: str = "org/target"
    revision: str = ""
    quantization: Mapping[str, object] = field(default_factory=dict)
    is_restated: bool = False

    def restated(self, block: Mapping[str, object]) -> ConfigOnly:
        """The same, of which an engine is told another block."""
        told = {**self.config, "quantization_config": block}
        return replace(self, config=told, quantization=block, is_restated=True)


@pytest.fixture(scope="session")
def target_of() -> Callable[..., ConfigOnly]:
    """Config (and names) -> a checkpoint."""

    def make(config: Mapping[str, object], names: Iterable[str] = (), **more: str) -> ConfigOnly:
        block = config.get("quantization_config") or {}
        return ConfigOnly(config, frozenset(names), quantization=block, **more)

    return make
