"""How long a comparison at full size takes, and what memory: python benchmarks/fidelity.py [--experts 256].

GLM-5.2's widths, random weights: the dense layer, a head and an embedding in BF16, and the INT4 draft that mtpforge
makes of it, on random inputs. Every number of workers is a run of its own; their answers must be the same bytes. The
estimate is the one that the command tells before it starts. Steps, swaps and experts are CPU seconds, because machines
are shared: divided by the workers they are the wall of a quiet one. 32 experts take 8 GB of disk, 256 take 31.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import layers
import measuring
from rich.console import Console
from rich.table import Table

CHILD = str(Path(__file__).with_name("child.py"))
LEAST_LIMIT = 4 << 10  # MiB that a comparison must stay below
COLUMNS = (
    *(
        "experts",
        "workers",
        "told s",
        "wall s",
        "CPU s",
        "steps",
        "swaps",
        "an expert of a step",
        "an expert exchanged",
    ),
    *("told MiB", "peak MiB", "load", "answer"),
)


def row(folder: Path, n_experts: int, workers: int, tokens: int, k: int) -> list[str]:
    """One run, measured from outside."""
    reference, draft = layers.whole("bf16", folder, n_experts), layers.source("int4", folder, n_experts)
    answer = folder / f"answer-{n_experts}-{workers}.json"
    words = [str(reference), str(draft), str(layers.inputs(folder, tokens)), str(k), str(workers), str(answer)]
    done = measuring.run([sys.executable, CHILD, "fidelity", *words])
    if done.peak > LEAST_LIMIT:
        raise SystemExit(f"{done.peak:.0f} MiB at the peak, {LEAST_LIMIT} are allowed")
    said, digest = done.said, hashlib.sha256(answer.read_bytes()).hexdigest()[:12]
    seconds = (said["told"], done.wall, done.cpu, said["steps"], said["swaps"])
    experts = (said["an expert of a step"], said["an expert exchanged"])
    return [
        *(str(n_experts), str(workers), *(f"{n:.0f}" for n in seconds), *(f"{n:.2f}" for n in experts)),
        *(f"{said['told memory']:.0f}", f"{done.peak:.0f}", f"{done.load:.1f}", digest),
    ]


def main() -> None:
    """Print the table; an error where numbers of workers give different answers."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--experts", type=int, default=32)
    asked.add_argument("--tokens", type=int, default=2048)
    asked.add_argument("--steps", type=int, default=3)
    asked.add_argument("--workers", default="1,2", help="a run for each of these numbers; default: 1,2")
    asked.add_argument("--folder", type=Path, help="where layers are made and kept; default: one that is removed")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtpforge-bench-", dir=given.folder and given.folder.parent) as own:
        folder = given.folder or Path(own)
        rows = [row(folder, given.experts, int(n), given.tokens, given.steps) for n in given.workers.split(",")]
    table = Table(*COLUMNS, title=f"{measuring.machine()}; {given.tokens} tokens, {given.steps} steps")
    for cells in rows:
        table.add_row(*cells)
    Console(width=200).print(table)
    if len({cells[-1] for cells in rows}) > 1:
        raise SystemExit("numbers of workers give different answers")


if __name__ == "__main__":
    main()
