"""The journal: which steps of which plan are finished, one JSON line each.

The first line names the key, a digest of the plan and of the files' layout, and the target that the draft is for. A
line is appended only after the data that it speaks of is on the medium, so a line that can be read is true; the last
one may be torn by a crash and is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

from mtpforge.durable import effects

_LONGEST: Final = 4096  # of a first line
Finished: TypeAlias = dict[int, dict[str, str]]  # step -> tensor name -> sha256


def load(path: Path, key: str, target: str = "") -> tuple[Finished, int] | None:
    """Finished steps and the length of the readable part; None where there is no journal of this key."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    if not lines or lines[0] != _line({"key": key, "target": target}):
        return None
    finished: Finished = {}
    n_bytes = len(lines[0])
    for line in lines[1:]:
        entry = _parsed(line)
        if entry is None:
            break
        finished[entry[0]] = entry[1]
        n_bytes += len(line)
    return finished, n_bytes


def start(path: Path, key: str, target: str = "") -> int:
    """A descriptor of a new journal for this key; not synced: a key without steps is worth nothing."""
    fd = _open(path)
    os.ftruncate(fd, 0)
    effects.append(fd, _line({"key": key, "target": target}))
    return fd


def resume(path: Path, n_bytes: int) -> int:
    """A descriptor of an old journal, cut to its readable part."""
    fd = _open(path)
    os.ftruncate(fd, n_bytes)
    return fd


def target_of(path: Path) -> str:
    """Identity of the target that an unfinished draft is for; "" where there is no journal, or none that says."""
    try:
        with path.open("rb") as file:
            body = json.loads(file.readline(_LONGEST))
    except (OSError, ValueError, RecursionError):
        return ""
    return str(body.get("target", "")) if isinstance(body, dict) else ""


def n_steps(path: Path) -> int:
    """How many steps a journal says are finished, whatever plan they are of; 0 where there is none."""
    try:
        return sum(_parsed(line) is not None for line in path.read_bytes().splitlines(keepends=True))
    except OSError:
        return 0


def lines(finished: Mapping[int, Mapping[str, str]]) -> bytes:
    """The lines of these steps."""
    return b"".join(_line({"step": step, "sha256": dict(digests)}) for step, digests in finished.items())


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def _line(body: Mapping[str, object]) -> bytes:
    return (json.dumps(body, separators=(",", ":")) + "\n").encode()


def _parsed(line: bytes) -> tuple[int, dict[str, str]] | None:
    """Step and digests; None for a torn line."""
    try:
        body = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    match body:
        case {"step": int(step), "sha256": dict(digests)}:
            return step, {str(name): str(digest) for name, digest in digests.items()}
    return None
