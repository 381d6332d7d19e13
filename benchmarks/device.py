"""What a GPU makes of a build: python benchmarks/device.py [--device cuda:1]. Ends with 5 where there is none.

First the arithmetic, with everything on the device: decode and encode bands of random weights, without the pass that
finds NVFP4's largest magnitude. "share" is the bytes that have to be read and written, stored parts on both sides, a
second, as a share of what a plain copy on the same device moves in the same run. Then whole builds in turn: on the
device, on the CPU, and the floor, the same bytes read and written by a plain loop; the weight files of both builds must
be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import build as builds
import layers
import measuring
import torch
from rich.console import Console
from torch import Tensor

from mtpforge.errors import MACHINE
from mtpforge.formats import FORMATS
from mtpforge.tensors import Quantization
from mtpforge.weights.bands import BAND_ELEMENTS

COLUMNS = 4096
REPEATS = 20
DENSE = Quantization("dense", 16, "BF16")
INT4 = Quantization("pack_quantized", 4, strategy="group", group_size=32, symmetric=False, scale_dtype="BF16")
FP8 = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32")
NVFP4 = Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3")
PAIRS = {
    "NVFP4 to INT4": (NVFP4, INT4),
    "FP8 to INT4": (FP8, INT4),
    "BF16 to INT4": (DENSE, INT4),
    "BF16 to NVFP4": (DENSE, NVFP4),
    "NVFP4 to BF16": (NVFP4, DENSE),
}


def seconds(work: Callable[[], object]) -> float:
    """Median device time of a piece of work, after two rounds to warm up."""
    times = []
    for _ in range(REPEATS + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[2:])


def copied(device: torch.device) -> float:
    """Bytes a second that a plain copy on the device reads and writes."""
    one = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    return 2 * len(one) / seconds(lambda: other.copy_(one))


def arithmetic(case: str, n_weights: int, bandwidth: float, device: torch.device) -> list[str]:
    """A row: time of a band, weights a second, share of the bandwidth."""
    stored, wanted = PAIRS[case]
    shape = (n_weights // COLUMNS, COLUMNS)
    form, to = FORMATS[stored.format], FORMATS[wanted.format]
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parts, matrix = _parts(stored, values, device), _matrix(wanted, values, device)
    assert to.encode is not None
    made = to.encode(form.decode(parts, shape, stored), wanted, matrix)
    n_bytes = sum(part.nbytes for part in (*parts.values(), *made.values()))
    spent = seconds(lambda: to.encode(form.decode(parts, shape, stored), wanted, matrix))
    share = n_bytes / spent / bandwidth
    return [case, f"{n_weights / 1e6:.1f} M", f"{spent * 1e3:.2f}", f"{n_weights / spent / 1e9:.1f}", f"{share:.1%}"]


def _matrix(quantization: Quantization, values: Tensor, device: torch.device) -> dict[str, Tensor]:
    form = FORMATS[quantization.format]
    assert form.matrix_parts is not None
    made = form.matrix_parts((values.shape[0], values.shape[1]), quantization, values.abs().amax())
    return {suffix: part.to(device) for suffix, part in made.items()}


def _parts(quantization: Quantization, values: Tensor, device: torch.device) -> dict[str, Tensor]:
    matrix, form = _matrix(quantization, values, device), FORMATS[quantization.format]
    assert form.encode is not None
    return {**matrix, **form.encode(values.to(device), quantization, matrix)}


def whole(options: builds.Options, case: str, device: str) -> list[str]:
    """A row: walls of the build on the device and on the CPU, and of the floor."""
    walls: dict[str, list[float]] = {device: [], "cpu": [], "floor": []}
    digests, peak = set(), 0.0
    for _ in range(options.runs):
        n_bytes = 0
        for where in (device, "cpu"):
            made, digest = _built(options, case, where)
            walls[where].append(made.wall)
            digests.add(digest)
            n_bytes, peak = int(made.said["bytes"]), max(peak, made.peak)
        walls["floor"].append(builds.floor(options, case, n_bytes).wall)
    if len(digests) != 1:
        raise SystemExit(f"{case}: the weights differ between {device} and the CPU")
    ratio = measuring.median([a / b for a, b in zip(walls[device], walls["floor"], strict=True)])
    return [case, *(f"{measuring.median(seen):.1f}" for seen in walls.values()), f"{ratio:.2f}", f"{peak:.0f}", "equal"]


def _built(options: builds.Options, case: str, device: str) -> tuple[measuring.Run, str]:
    stored, wanted = builds.CASES[case]
    source, out = layers.source(stored, options.folder, options.experts), options.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    builds.prepare(options, source)
    words = options.job("build", str(source), layers.scheme(wanted, options.folder), str(out), "off", device)
    try:
        made = measuring.run(words)
        with (out / "model.safetensors").open("rb") as file:
            return made, hashlib.file_digest(file, "sha256").hexdigest()
    finally:
        shutil.rmtree(out, ignore_errors=True)


def main() -> None:
    """Print the two tables."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--device", default="cuda:0")
    asked.add_argument("--experts", type=int, default=32, help="of the routed experts; 256 is full size, 40 GB of disk")
    asked.add_argument("--runs", type=int, default=3)
    asked.add_argument("--case", action="append", choices=PAIRS, help="only this one; may be repeated")
    asked.add_argument("--folder", type=Path, default=Path("out/benchmarks"))
    asked.add_argument("--arithmetic", action="store_true", help="only the first table: nothing is written")
    given = asked.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured", file=sys.stderr)
        raise SystemExit(MACHINE)
    console, cases, device = Console(width=150), given.case or list(PAIRS), torch.device(given.device)
    with torch.cuda.device(device):
        bandwidth = copied(device)
        console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {bandwidth / 1e9:.0f} GB/s")
        sizes = [BAND_ELEMENTS * factor for factor in (1, 4, 16)]  # the first is what a build takes
        rows = [arithmetic(case, size, bandwidth, device) for case in cases for size in sizes]
    console.print(builds.table(("decode and encode", "band", "ms", "G weights/s", "share"), rows))
    if given.arithmetic:
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    options = builds.Options(given.folder.absolute(), given.experts, given.runs, cold=False, peer_python="")
    names = ("build", f"{device} s", "cpu s", "floor s", "of the floor", "peak MiB", "weights")
    console.print(f"{measuring.machine()}; {given.experts} experts, warm, {given.runs} runs")
    console.print(builds.table(names, [whole(options, case, str(device)) for case in cases]))


if __name__ == "__main__":
    main()
