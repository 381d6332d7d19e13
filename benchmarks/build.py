"""How long a build takes, against the disk and against its peers: python benchmarks/build.py [--experts 256].

Every case alternates with the floor: the same bytes read and written by a plain loop on the same disk. Medians of all
runs; outputs are deleted in between. Figures are walls from process start to the final rename, and CPU seconds of the
build process; the process of the reference check has a column of its own.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import layers
import measuring
from measuring import Run, median
from rich.console import Console
from rich.table import Table

CHILD = str(Path(__file__).with_name("child.py"))
PEER = str(Path(__file__).with_name("peer.py"))
CASES = {
    "NVFP4 to INT4": ("nvfp4", "int4"),
    "FP8 to INT4": ("fp8", "int4"),
    "BF16 to INT4": ("bf16", "int4"),
    "BF16 to NVFP4": ("bf16", "nvfp4"),
    "NVFP4 to BF16": ("nvfp4", "bf16"),
}
LIBRARY_EXPERTS = 2  # of the library's own functions enough is seen at two

# Of the tiny model: source, check, and what a bare process has to import at least.
_REPOSITORY = Path(__file__).parents[1]
_TINY = _REPOSITORY / "tests" / "data" / "tinyglm"
_DEMO = _REPOSITORY / "mtpforge" / "_demo"
STARTS = {
    "BF16, unchecked, to torch": (_TINY / "bf16", "off", "torch"),
    "NVFP4, sample, to modelopt": (_DEMO / "nvfp4", "sample", "modelopt"),
    "FP8, sample, to compressed-tensors": (_TINY / "fp8", "sample", "compressed_tensors"),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. folder: where layers and outputs go, on the disk that is measured."""

    folder: Path
    experts: int
    runs: int
    cold: bool
    peer_python: str

    def job(self, *words: str) -> list[str]:
        return [sys.executable, CHILD, *words]


def build(options: Options, case: str, check: str) -> Run:
    """One build into a folder that is removed after it."""
    stored, wanted = CASES[case]
    source, out = layers.source(stored, options.folder, options.experts), options.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    prepare(options, source)
    try:
        scheme = layers.scheme(wanted, options.folder)
        return measuring.run(options.job("build", str(source), scheme, str(out), check))
    finally:
        shutil.rmtree(out, ignore_errors=True)


def floor(options: Options, case: str, n_bytes: int) -> Run:
    """The plain loop over the same bytes."""
    source = layers.source(CASES[case][0], options.folder, options.experts)
    out = options.folder / "floor.bin"
    prepare(options, source)
    try:
        return measuring.run(options.job("floor", str(source), str(n_bytes), str(out)))
    finally:
        out.unlink(missing_ok=True)


def prepare(options: Options, source: Path) -> None:
    """The source as asked: forgotten by the system, or read once."""
    if options.cold:
        measuring.forget(source)
    else:  # read once, so that what fits into memory is there
        for file in source.glob("*.safetensors"):
            with file.open("rb", buffering=0) as stream:
                while stream.read(8 << 20):
                    pass


def case_rows(options: Options, case: str) -> list[str]:
    """A row of the first table."""
    sampled, unchecked, floors = [], [], []
    for _ in range(options.runs):
        unchecked.append(build(options, case, "off"))
        floors.append(floor(options, case, int(unchecked[-1].said["bytes"])))
        sampled.append(build(options, case, "sample"))
    walls = [run.wall for run in sampled]
    ratios = [run.wall / bare.wall for run, bare in zip(sampled, floors, strict=True)]
    return [
        case,
        _seconds(walls),
        _seconds([run.wall for run in floors]),
        f"{median(ratios):.2f}",
        _seconds([run.cpu for run in sampled]),
        _seconds([run.child_cpu for run in sampled]),
        _seconds([run.cpu for run in unchecked]),
        _seconds([run.cpu for run in floors]),
        f"{max(run.peak for run in sampled):.0f}",
        f"{max(run.peak for run in unchecked):.0f}",
        f"{median([run.load for run in sampled]):.1f}",
    ]


def verified(options: Options, case: str) -> list[str]:
    """Verification against the build, in turn."""
    stored, wanted = CASES[case]
    source, out = layers.source(stored, options.folder, options.experts), options.folder / "out"
    scheme = layers.scheme(wanted, options.folder)
    builds, checks = [], []
    for _ in range(options.runs):
        shutil.rmtree(out, ignore_errors=True)
        builds.append(measuring.run(options.job("build", str(source), scheme, str(out), "sample")))
        checks.append(measuring.run(options.job("verify", str(out), str(source), scheme)))
    shutil.rmtree(out, ignore_errors=True)
    ratio = median([check.wall / made.wall for check, made in zip(checks, builds, strict=True)])
    peak = max(run.peak for run in checks)
    return [case, _seconds([r.wall for r in checks]), f"{ratio:.2f}", _seconds([r.cpu for r in checks]), f"{peak:.0f}"]


def library(options: Options, wanted: str) -> list[str]:
    """compressed-tensors' own functions, in millions of weights a CPU second."""
    source = layers.source("bf16", options.folder, options.experts)
    words = options.job("library", str(source), wanted, str(LIBRARY_EXPERTS))
    speeds = [run.said["weights"] / run.said["seconds"] / 1e6 for run in _repeat(options, lambda: measuring.run(words))]
    return [
        f"compressed-tensors, matrix by matrix, BF16 to {wanted.upper()}",
        f"{median(speeds):.0f} M weights a CPU s",
    ]


def peer(options: Options) -> list[str]:
    """model_free_ptq and our build in turn."""
    source, out = layers.source("bf16", options.folder, options.experts), options.folder / "peer"
    ours, theirs = [], []
    for _ in range(options.runs):
        shutil.rmtree(out, ignore_errors=True)
        theirs.append(measuring.run([options.peer_python, PEER, str(source), str(out)]))
        ours.append(build(options, "BF16 to INT4", "sample"))
    shutil.rmtree(out, ignore_errors=True)
    pairs = list(zip(theirs, ours, strict=True))
    wall, cpu = (median([getattr(a, key) / getattr(b, key) for a, b in pairs]) for key in ("wall", "cpu"))
    shown = f"{_seconds([r.wall for r in theirs])} s, {_seconds([r.cpu for r in theirs])} CPU s"
    peak = max(run.peak for run in theirs)
    figures = f"{shown}, peak {peak:.0f} MiB: {wall:.1f} times our wall, {cpu:.1f} times our CPU"
    return ["model_free_ptq, BF16 to INT4", figures]


def started(options: Options, case: str) -> list[str]:
    """The command line on a tiny model, and a process that only imports what it cannot do without, in turn."""
    source, check, library = STARTS[case]
    out = options.folder / "out"
    words = ["-m", "mtpforge", "-q", "build", "--target", str(_DEMO / "awq-int4"), "--source", str(source)]
    builds, bare = [], []
    for _ in range(options.runs):
        shutil.rmtree(out, ignore_errors=True)
        bare.append(measuring.run(options.job("start", library)))
        builds.append(measuring.run([sys.executable, *words, "--check", check, "--out", str(out)]))
    shutil.rmtree(out, ignore_errors=True)
    ratio = median([made.wall / other.wall for made, other in zip(builds, bare, strict=True)])
    return [case, _seconds([r.wall for r in builds]), _seconds([r.wall for r in bare]), f"{ratio:.2f}"]


def _repeat(options: Options, once: Callable[[], Run]) -> list[Run]:
    return [once() for _ in range(options.runs)]


def _seconds(values: Sequence[float]) -> str:
    return f"{median(values):.1f}"


def main() -> None:
    """Run what was asked for and print the tables."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--experts", type=int, default=32, help="of the routed experts; 256 is full size, 40 GB of disk")
    asked.add_argument("--runs", type=int, default=3)
    asked.add_argument("--cold", action="store_true", help="let the system forget the source before each run")
    asked.add_argument("--case", action="append", choices=CASES, help="only this one; may be repeated")
    asked.add_argument("--folder", type=Path, default=Path("out/benchmarks"))
    asked.add_argument("--peer-python", default="", help="an interpreter that has llmcompressor")
    given = asked.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    options = Options(given.folder.absolute(), given.experts, given.runs, given.cold, given.peer_python)
    cases = given.case or list(CASES)
    console = Console(width=150)
    console.print(
        f"{measuring.machine()}; {options.experts} experts, {'cold' if options.cold else 'warm'}, {options.runs} runs"
    )
    names = ("case", "wall s", "floor s", "ratio", "CPU s", "check CPU s", "CPU s unchecked", "floor CPU s")
    console.print(table((*names, "peak MiB", "peak unchecked", "load"), [case_rows(options, case) for case in cases]))
    names = ("verify", "wall s", "of the build", "CPU s", "peak MiB")
    console.print(table(names, [verified(options, case) for case in cases[:1]]))
    names = ("a tiny build, to the imports it needs", "wall s", "imports s", "ratio")
    console.print(table(names, [started(options, case) for case in STARTS]))
    others = [library(options, wanted) for wanted in ("int4", "nvfp4")]
    console.print(table(("peer", "figure"), [*others, *([peer(options)] if options.peer_python else [])]))


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Rows under names, without lines."""
    made = Table(*names, box=None, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    return made


if __name__ == "__main__":
    main()
