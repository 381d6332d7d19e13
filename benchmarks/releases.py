"""Published layers in their own formats, at full size, to BF16 and for targets: python benchmarks/releases.py.

Every build to BF16 goes in turn with one of NVFP4, whose layer has as many weights, so that CPU seconds can be divided;
all but routed experts, and a sample of these, are compared bit by bit with plain numpy code. The drafts for targets are
verified. Needs 50 GB of disk with 256 experts; what was made is removed as soon as it was used.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import censuses
import measuring
import plain
from build import CHILD, table
from measuring import Run
from rich.console import Console

NVFP4 = "nvfp4-experts-lukealonso"
USUAL = ("mxfp4-amd", "w4afp8", "int8-channel-quanttrio")
TARGETS = ("target-awq-int4-ignore-to-77", "target-fp8")
SAMPLED = 8  # experts, of three matrices each


def to_bf16(source: Path, out: Path) -> Run:
    """One build with sample checks."""
    shutil.rmtree(out, ignore_errors=True)
    return measuring.run([sys.executable, CHILD, "build", str(source), "bf16", str(out), "sample"])


def compared(source: Path, draft: Path, n_experts: int) -> tuple[int, int, int]:
    """Tensors and weights of the draft, and how many tensors were compared whole; a difference ends the run."""
    stored, made = plain.Tensors(source), plain.Tensors(draft)
    few = {round(i * (n_experts - 1) / (SAMPLED - 1)) for i in range(SAMPLED)}
    n_compared = 0
    for name in made.names:
        expert = censuses.EXPERT.search(name)
        if expert is not None and int(expert[1]) not in few:
            continue
        module = name.removesuffix(".weight")
        wanted = plain.dense(stored, module) if name != module and made[name].ndim > 1 else stored[name]
        if wanted.shape != made[name].shape or wanted.tobytes() != made[name].tobytes():
            raise SystemExit(f"{source}: {name} is not what plain code decodes")
        n_compared += 1
    return len(made.names), sum(math.prod(made[name].shape) for name in made.names), n_compared


def case_row(census: str, folder: Path, n_experts: int, runs: int) -> list[str]:
    """A release to BF16 and NVFP4 to BF16, in turn."""
    out, source, other = folder / "out", *(censuses.source(name, folder, n_experts) for name in (census, NVFP4))
    ours, nvfp4 = [], []
    for _ in range(runs):
        nvfp4.append(to_bf16(other, out))
        ours.append(to_bf16(source, out))
    n_tensors, n_weights, n_compared = compared(source, out, n_experts)
    shutil.rmtree(out)
    cpu, base = (measuring.median([run.cpu for run in those]) for those in (ours, nvfp4))
    return [
        census,
        str(n_tensors),
        str(n_compared),
        f"{measuring.median([run.wall for run in ours]):.1f}",
        f"{cpu:.1f}",
        f"{cpu / n_weights * 1e9:.2f}",
        f"{cpu / base:.2f}",
        f"{measuring.median([run.child_cpu for run in ours]):.1f}",
        f"{max(run.peak for run in ours):.0f}",
        f"{max(run.peak for run in nvfp4):.0f}",
    ]


def target_row(census: str, release: str, folder: Path, n_experts: int) -> list[str]:
    """A draft for a target of which config.json is known, built and verified as a user would."""
    source, out, target = censuses.source(census, folder, n_experts), folder / "out", folder / release
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(censuses.release(release, n_experts)))
    shutil.rmtree(out, ignore_errors=True)
    words, ends = [sys.executable, "-m", "mtpforge"], ["--target", str(target), "--source", str(source)]
    built = measuring.run([*words, "-q", "build", *ends, "--out", str(out)])
    checked = measuring.run([*words, "-q", "verify", str(out), *ends])  # any exit status but 0 ends the run
    n_tensors = len(plain.Tensors(out).names)
    shutil.rmtree(out)
    walls = (f"{run.wall:.1f}" for run in (built, checked))
    return [census, release, str(n_tensors), *walls, f"{max(built.peak, checked.peak):.0f}"]


def main() -> None:
    """Run what was asked for and print the tables."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--experts", type=int, default=256)
    asked.add_argument("--runs", type=int, default=1)
    asked.add_argument("--census", action="append", choices=censuses.RELEASES, help="only this one; may be repeated")
    asked.add_argument("--folder", type=Path, default=Path("out/benchmarks"))
    asked.add_argument("--keep", action="store_true", help="the NVFP4 layer, for a later run")
    given = asked.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    folder, n, console = given.folder.absolute(), given.experts, Console(width=150)
    console.print(f"{measuring.machine()}; {n} experts, {given.runs} runs, warm as far as memory goes")
    dense, drafts = [], []
    for census in given.census or USUAL:
        dense.append(case_row(census, folder, n, given.runs))
        drafts += [target_row(census, release, folder, n) for release in TARGETS]
        print(dense[-1], *drafts[-len(TARGETS) :], sep="\n", file=sys.stderr)
        if not given.keep or census != NVFP4:
            shutil.rmtree(folder / f"{census}-{n}", ignore_errors=True)
    if not given.keep:
        shutil.rmtree(folder / f"{NVFP4}-{n}")
    names = ("to BF16", "tensors", "compared", "wall s", "CPU s", "ns a weight", "of NVFP4", "check CPU s", "peak MiB")
    console.print(table((*names, "NVFP4's"), dense))
    console.print(table(("draft", "target", "tensors", "build wall s", "verify wall s", "peak MiB"), drafts))


if __name__ == "__main__":
    main()
