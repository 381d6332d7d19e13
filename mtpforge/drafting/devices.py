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

from mtpforge.engines.hardware import memory_shares
from mtpforge.report import Check
from mtpforge.units import file_size, memory_size

_TOOL: Final = "nvidia-smi"
_ASKED: Final = ("name", "compute_cap", "memory.total", "driver_version", "clocks.max.sm", "clocks.sm")
_SECONDS: Final = 20  # a driver that hangs must not hold up what else is told
_NUMBER: Final = re.compile(r"\d+(\.\d+)?")
_MEMORY: Final = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Gpu:
    """capability: as `9.0`. memory_bytes, megahertz, at most and now: None where the driver does not tell.

    Where memory is shared with the CPU, on a DGX Spark (GB10), it tells none: `[N/A]`.
    """

    name: str
    capability: str
    memory_bytes: int | None
    driver: str
    megahertz: int | None
    megahertz_now: int | None

    @property
    def shares_memory(self) -> bool:
        """Whether its memory is the CPU's, as far as the driver tells."""
        return self.memory_bytes is None

    @property
    def told(self) -> str:
        """One line for people."""
        memory = (
            "memory shared with the CPU or not told" if self.memory_bytes is None else memory_size(self.memory_bytes)
        )
        clock = "" if self.megahertz is None else f", up to {self.megahertz:,} MHz"
        clock += "" if self.megahertz_now is None else f", now at {self.megahertz_now:,}{'' if clock else ' MHz'}"
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


def checks(found: tuple[Gpu, ...] | str) -> tuple[Check, ...]:
    """A line a GPU, memory, and room where drafts and what is fetched would go. None of them fails: a CPU is enough."""
    told = (
        (Check("GPU", "not checked", f"{found}; building and verifying need none"),)
        if isinstance(found, str)
        else tuple(Check(f"GPU {number}", "passed", gpu.told) for number, gpu in enumerate(found))
    )
    shared = not isinstance(found, str) and any(gpu.shares_memory for gpu in found)
    return *told, Check("memory", "passed", _memory()), *(_floor() if shared else ()), Check("disk", "passed", _disk())


def _floor() -> tuple[Check, ...]:
    """Whether a server finds free what it is given on a machine whose GPU shares its memory with the page cache.

    vLLM 0.33 counts the cache as free there (utils/mem_utils.py), by what the system says is available; CUDA does not.
    """
    try:
        lines = _MEMORY.read_text().splitlines()
        kibibytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        total, free, cached = (kibibytes[name] << 10 for name in ("MemTotal", "MemFree", "Cached"))
    except (OSError, KeyError, ValueError, IndexError):
        return (Check("memory of a server", "not checked", f"{_MEMORY} does not tell"),)
    told = f"{memory_size(free)} of {memory_size(total)} free, {memory_size(cached)} of the rest page cache"
    wanting: dict[float, list[str]] = {}
    for name, share in memory_shares().items():
        if free < share * total:
            wanting.setdefault(share, []).append(name)
    if not wanting:
        return (Check("memory of a server", "passed", told),)
    given = ", ".join(f"{share:.0%} on {' and '.join(wanting[share])}" for share in sorted(wanting))
    wanted = f"{told}; a server is given {given}, and CUDA does not count the cache as free"
    fix = "before a server starts, on every node: `sync; echo 3 | sudo tee /proc/sys/vm/drop_caches`"
    return (Check("memory of a server", "warning", wanted, fix),)


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return memory_size(pages * size)


def _disk() -> str:
    here = Path.cwd()
    return f"{file_size(shutil.disk_usage(here).free)} free in {here}"


def _gpu(name: str, capability: str, mebibytes: str, driver: str, *clocks: str) -> Gpu:
    memory, most, now = (int(float(text)) if _NUMBER.fullmatch(text) else None for text in (mebibytes, *clocks))
    return Gpu(name, capability, None if memory is None else memory << 20, driver, most, now)
