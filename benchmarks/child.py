"""What build.py measures, one job a process: prints CPU seconds of itself and its children as JSON.

python child.py build SOURCE SCHEME OUT CHECK     the layer in another scheme: from process start to the rename;
                                                  [DEVICE] behind it: where it is computed
python child.py verify DRAFT SOURCE SCHEME
python child.py floor SOURCE BYTES OUT            reads the source and writes so many bytes: a plain loop, one fsync
python child.py library SOURCE SCHEME EXPERTS     compressed-tensors' functions, matrix by matrix, in memory
python child.py start LIBRARY                     imports torch, modelopt or compressed_tensors, as the check does
python child.py fidelity REFERENCE DRAFT INPUTS K WORKERS JSON
                                                  the comparison, its answer written to a file; what an expert costs
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

STEP = 1 << 20


def build(source: str, scheme: str, out: str, check: str, device: str = "cpu") -> dict[str, float]:
    """The build as the command line runs it, without the verification that follows."""
    from mtpforge import scheme as schemes
    from mtpforge.building import build as run
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.planning import plan

    stored = open_checkpoint(source)
    decided = plan(stored, None, scheme=schemes.load(scheme))
    run(decided, {"source": stored}, Path(out), check=check, device=device)  # type: ignore[arg-type]
    return {"bytes": sum(file.stat().st_size for file in Path(out).iterdir())}


def verify(draft: str, source: str, scheme: str) -> dict[str, float]:
    """Verification of a draft with its source."""
    from mtpforge import scheme as schemes
    from mtpforge.checkpoint import open_checkpoint
    from mtpforge.verifying import verify as run

    stored = open_checkpoint(source)
    report = run(draft, stored, stored, scheme=schemes.load(scheme))
    values = next(check for check in report.checks if check.name == "values")
    if values.verdict != "passed":
        raise SystemExit(values.detail)
    return {}


def floor(source: str, n_bytes: str, out: str) -> dict[str, float]:
    """The same bytes read and written, and nothing else."""
    buffer = bytearray(STEP)
    for file in sorted(Path(source).glob("*.safetensors")):
        fd, at = os.open(file, os.O_RDONLY), 0
        while n := os.preadv(fd, [buffer], at):
            at += n
        os.close(fd)
    fd = os.open(out, os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(fd, 0, int(n_bytes))
    for at in range(0, int(n_bytes), STEP):
        os.pwrite(fd, memoryview(buffer)[: min(STEP, int(n_bytes) - at)], at)
    os.fsync(fd)
    os.close(fd)
    return {}


def library(source: str, scheme: str, n_experts: str) -> dict[str, float]:
    """CPU seconds of compressed-tensors on the matrices of some experts, loading left out."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
    from safetensors import safe_open

    torch.set_num_threads(1)
    int4 = scheme == "int4"
    args = (
        QuantizationArgs(
            num_bits=4, type="int", symmetric=False, strategy="group", group_size=32, scale_dtype=torch.bfloat16
        )
        if int4
        else QuantizationArgs(
            num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype=torch.float8_e4m3fn
        )
    )
    name = "pack-quantized" if int4 else "nvfp4-pack-quantized"
    compressor = BaseCompressor.get_value_from_registry(name)
    layout = QuantizationScheme(targets=["Linear"], weights=args)
    index = json.loads(Path(source, "model.safetensors.index.json").read_text())["weight_map"]
    wanted = [
        n for n in index if any(f".experts.{e}." in n for e in range(int(n_experts))) and n.endswith("_proj.weight")
    ]
    weights, spent = 0, 0.0
    for tensor in wanted:
        with safe_open(Path(source, index[tensor]), "pt") as file:
            stored = file.get_tensor(tensor)
        before = time.process_time()
        weight = stored.float()
        groups = weight.unflatten(-1, (-1, args.group_size))
        scale_of_all = None if int4 else generate_gparam(weight.min(), weight.max())
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args, global_scale=scale_of_all)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        compressor.compress(state if int4 else {**state, "weight_global_scale": scale_of_all}, layout)
        spent += time.process_time() - before
        weights += weight.numel()
    return {"weights": weights, "seconds": spent}


def start(library: str) -> dict[str, float]:
    """Imports alone."""
    import torch

    assert torch.__version__
    if library == "modelopt":
        from modelopt.torch.quantization.qtensor import NVFP4QTensor

        assert NVFP4QTensor
    if library == "compressed_tensors":
        from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer

        assert FP8BlockDequantizer
    return {}


def fidelity(reference: str, draft: str, inputs: str, k: str, workers: str, answer: str) -> dict[str, float]:
    """The comparison as the command runs it: its estimate; CPU seconds of steps, of swaps, and of an expert of each.

    An expert of a step is read, decoded and run on its rows; of the swaps it is so for both layers, compared, and its
    three projections are exchanged one at a time.
    """
    import mtpforge
    from mtpforge.judging import cost as costs
    from mtpforge.report import Progress, plain

    told: list[tuple[float, costs.Cost]] = []
    estimate = costs.cost

    def cost(*of: Any, **more: bool) -> costs.Cost:  # noqa: ANN401
        need = estimate(*of, **more)
        told.append((time.process_time(), need))
        return need

    costs.cost = cost
    seen: list[tuple[float, Progress]] = []
    found = mtpforge.fidelity(
        *(draft, reference),
        inputs=inputs,
        k=int(k),
        workers=int(workers),
        on_progress=lambda progress: seen.append((time.process_time(), progress)),
    )
    end = time.process_time()
    Path(answer).write_text(json.dumps(plain(found.document()), sort_keys=True))
    (start, need), predicted = told[0], max(at for at, progress in seen if progress.phase == "predict")
    return {
        "told": need.seconds,
        "told memory": need.memory_bytes / (1 << 20),
        "steps": predicted - start,
        "swaps": end - predicted,
        "an expert of a step": _each([(at, p) for at, p in seen if at <= predicted], "experts"),
        "an expert exchanged": _each(seen, "modules"),
    }


def _each(seen: list[tuple[float, Any]], phase: str) -> float:
    """CPU seconds of one of a phase's items, from the first to the last of every sweep."""
    seconds = items = 0.0
    for (before, last), (after, progress) in pairwise(seen):
        if last.phase == progress.phase == phase and progress.done > last.done:
            seconds, items = seconds + after - before, items + progress.done - last.done
    return seconds / items if items else 0.0


JOBS = {job.__name__: job for job in (build, verify, floor, library, start, fidelity)}

if __name__ == "__main__":
    began = time.perf_counter()
    answer = JOBS[sys.argv[1]](*sys.argv[2:])
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = {"cpu": time.process_time(), "child_cpu": children.ru_utime + children.ru_stime}
    print(json.dumps(answer | spent))
