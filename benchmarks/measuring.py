"""Runs a command and measures it from outside: wall, CPU of the process and of its children, memory of the tree."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.2
CHILD_SECONDS = "children's seconds"


@dataclass(frozen=True, slots=True)
class Run:
    """One run: seconds on the clock, CPU seconds of the process and of its children, MiB of PSS at the peak."""

    wall: float
    cpu: float
    child_cpu: float
    peak: float
    load: float
    said: dict[str, float]


def run(command: Sequence[str], **environment: str) -> Run:
    """Run a command to its end; a failure is an error. The last line of its output may be JSON numbers."""
    load = os.getloadavg()[0]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _pss(process.pid))
        time.sleep(SAMPLE_SECONDS)
    wall = time.perf_counter() - start
    output = process.communicate()[0].strip()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}\n{output}")
    last = output.splitlines()[-1] if output else ""
    said = json.loads(last) if last.startswith("{") else {}
    return Run(said.get("wall", wall), said.pop("cpu", 0.0), said.pop("child_cpu", 0.0), peak, load, said)


def median(values: Sequence[float]) -> float:
    """The median; 0 for none."""
    return statistics.median(values) if values else 0.0


def forget(folder: Path) -> None:
    """Let the system forget what it has cached of a folder's files, which are on the disk."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def machine() -> str:
    """What the figures were taken on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "?",
    )
    memory = psutil.virtual_memory().total / (1 << 30)
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {os.uname().release}"


def _pss(pid: int) -> float:
    """Proportional set size of a process and its children, MiB."""
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0.0
    total = 0
    for process in tree:
        try:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return total / 1024
