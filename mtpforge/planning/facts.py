"""Sizes of a plan: what is read, written, held in memory, and what kinds of modules become."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Engine, Serving
from mtpforge.families import Family
from mtpforge.formats import label
from mtpforge.methods import METHODS, RTN
from mtpforge.planning.steps import Move, Step
from mtpforge.tensors import Shape, TensorRef
from mtpforge.weights.bands import band_rows, held_bytes

# Memory of a build besides its steps: torch itself and the process of the reference check, measured as PSS: 0.22 and
# 0.37 GiB.
RESERVED_BYTES: Final = 600 << 20

_COPIED: Final = 1 << 20  # of what is copied, a piece at a time


def peak_bytes(step: Step) -> int:
    """Memory that running the step takes: one band at a time, its parts read and written, and what is held whole."""
    return max([_COPIED, *(_move_bytes(move, is_decoded=move.action == "encode" or step.ties) for move in step.moves)])


def _move_bytes(move: Move, *, is_decoded: bool) -> int:
    read, written = {s: ref.spec for s, ref in move.reads.items()}, {w.suffix: w.spec for w in move.writes}
    held = held_bytes(move.shape, move.stored, read) + held_bytes(move.shape, move.wanted, written)
    return held + (_band_bytes(move) if is_decoded else _COPIED)


def _band_bytes(move: Move) -> int:
    method = METHODS[move.scales]
    return _band(move.shape) * method.bytes_per_weight + method.factors * 4 * move.shape[1] ** 2


def _band(shape: Shape) -> int:
    return min(band_rows(shape), shape[0]) * shape[1]


def facts(
    engine: Engine,
    family: Family,
    steps: tuple[Step, ...],
    source: Checkpoint,
    target: Checkpoint | None,
    input_scales: Checkpoint | None,
    serving: Serving,
) -> dict[str, object]:
    """Facts of the plan as JSON-ready data; sizes in bytes.

    read_bytes (of files, each byte once), write_bytes, missing_bytes (still to download), peak_bytes (largest step),
    serving_bytes_per_rank, stored (rows of the table by kind).
    """
    origins = {"source": source, "target": target, "scales": input_scales}
    refs = [ref for step in steps for ref in step.reads]
    missing = sum(
        checkpoint.missing_bytes([r for r in refs if r.origin == origin])
        for origin, checkpoint in origins.items()
        if checkpoint is not None
    )
    specs = {w.name: w.spec for step in steps for w in step.writes}
    return {
        "read_bytes": _covered(refs),
        "write_bytes": sum(spec.n_bytes for spec in specs.values()),
        "missing_bytes": missing,
        "peak_bytes": max(step.peak_bytes for step in steps),
        "serving_bytes_per_rank": engine.memory(family, (target or source).config, specs, serving),
        "tensors": len(specs),
        "stored": _rows(steps),
    }


def _covered(refs: Iterable[TensorRef]) -> int:
    """Bytes of files that tensors lie in. Ranges overlap where rows of one lie between those of another."""
    covered, file, end = 0, ("", ""), 0
    for origin, name, start, stop in sorted((r.origin, r.file, r.start, r.stop) for r in refs):
        if (origin, name) != file:
            file, end = (origin, name), 0
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered


def _rows(steps: Iterable[Step]) -> list[dict[str, object]]:
    """One row per kind, stored form, wanted form and reason, in order of appearance."""
    counts: dict[tuple[str, str, str, str, str], int] = {}
    for step in steps:
        for move in step.moves:
            key = (move.kind, label(move.stored), label(move.wanted), _how(move), move.reason)
            counts[key] = counts.get(key, 0) + 1
        for carry in step.carries:
            read, write = carry.read.spec.dtype, carry.write.spec.dtype
            key = (carry.kind, read, write, "copied" if read == write else "cast", carry.reason)
            counts[key] = counts.get(key, 0) + 1
    return [
        {"kind": kind, "n": n, "stored": stored, "wanted": wanted, "action": action, "reason": reason}
        for (kind, stored, wanted, action, reason), n in counts.items()
    ]


def _how(move: Move) -> str:
    if move.action == "copy":
        return "copied"
    return "encoded" if METHODS[move.scales] is RTN else f"encoded, {move.scales}"
