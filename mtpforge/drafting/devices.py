"""What this machine has to compute with: GPUs as NVIDIA's own tool tells them, memory, room on the disk."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mtpforge.report import Check
from mtpforge.units import file_size, memory_size

_TOOL: Final = "nvidia-smi"
_ASKED: Final = ("name", "compute_cap", "memory.total", "driver_version", "clocks.max.sm")
_SECONDS: Final = 20  # a driver that hangs must not hold up what else is told
_NUMBER: Final = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Gpu:
    """capability: as `9.0`. memory_bytes, megahertz: None where the driver does not tell.

    Where memory is shared with the CPU, on a DGX Spark (GB10), it tells none: `[N/A]`.
    """

    name: str
    capability: str
    memory_bytes: int | None
    driver: str
    megahertz: int | None

    @property
    def told(self) -> str:
        """One line for people."""
        memory = (
            "memory shared with the CPU or not told" if self.memory_bytes is None else memory_size(self.memory_bytes)
        )
        clock = "" if self.megahertz is None else f", up to {self.megahertz:,} MHz"
        return f"{self.name}, sm_{self.capability.replace('.', '')}, {memory}, driver {self.driver}{clock}"


def gpus() -> tuple[Gpu, ...] | str:
    """The GPUs in the driver's order, or why none is known. `nvidia-smi --help-query-gpu` names the fields."""
    tool = shutil.which(_TOOL)
    if tool is None:
        return f"no `{_TOOL}` on PATH"
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"`{_TOOL}` gives no answer: {type(error).__name__}"
    rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines())]
    found = tuple(_gpu(*row) for row in rows if len(row) == len(_ASKED) and _NUMBER.fullmatch(row[1]))
    if done.returncode or not found:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"it ends with {done.returncode}"]
        return f"`{_TOOL}` tells of none: {said[0][:200]}"
    return found


def checks() -> tuple[Check, ...]:
    """A line a GPU, memory, and room where drafts and what is fetched would go. None of them fails: a CPU is enough."""
    found = gpus()
    told = (
        (Check("GPU", "not checked", f"{found}; building and verifying need none"),)
        if isinstance(found, str)
        else tuple(Check(f"GPU {number}", "passed", gpu.told) for number, gpu in enumerate(found))
    )
    return *told, Check("memory", "passed", _memory()), Check("disk", "passed", _disk())


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return memory_size(pages * size)


def _disk() -> str:
    here = Path.cwd()
    return f"{file_size(shutil.disk_usage(here).free)} free in {here}"


def _gpu(name: str, capability: str, mebibytes: str, driver: str, megahertz: str) -> Gpu:
    memory, clock = (int(float(text)) if _NUMBER.fullmatch(text) else None for text in (mebibytes, megahertz))
    return Gpu(name, capability, None if memory is None else memory << 20, driver, clock)
