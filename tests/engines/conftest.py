"""For the engines' tests: an interpreter that has imported vLLM already, and a target of which only config is known."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mtpforge.engines.vllm import loader

HERE = Path(__file__).parent
NAMED, ITSELF, SOCKET = (f"MTPFORGE_TEST_ENGINE_{each}" for each in ("PYTHON", "ITSELF", "SOCKET"))


def pytest_configure(config):
    """From here on the interpreter that tests read from the environment is `engine_python.py`."""
    engine = os.environ.get(ITSELF) or os.environ.get(NAMED)
    if not engine:
        return
    home = tempfile.TemporaryDirectory(prefix="mtpforge-engine-")
    config.add_cleanup(home.cleanup)
    program = Path(home.name) / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{HERE / "engine_python.py"}" "$@"\n')
    program.chmod(0o755)
    os.environ |= {NAMED: str(program), ITSELF: engine, SOCKET: f"{home.name}/socket"}


def pytest_collection_finish(session):
    """Start `vllm_server.py` where a test will ask it; it ends when this process does."""
    asking = any(item.get_closest_marker("engine") for item in session.items)
    if not asking or ITSELF not in os.environ or session.config.option.collectonly:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.environ[SOCKET])
        listener.listen()
        server = subprocess.Popen(
            [os.environ[ITSELF], HERE / "vllm_server.py", Path(loader.__file__).parent, str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )

    def end():
        server.stdin.close()
        server.wait()

    session.config.add_cleanup(end)


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


@pytest.fixture(scope="session")
def target_of() -> Callable[..., ConfigOnly]:
    """Config (and names) -> a checkpoint."""

    def make(config: Mapping[str, object], names: Iterable[str] = (), **more: str) -> ConfigOnly:
        block = config.get("quantization_config") or {}
        return ConfigOnly(config, frozenset(names), quantization=block, **more)

    return make
