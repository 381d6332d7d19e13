"""Scales of static activations, from stored ones into the draft's convention."""

from __future__ import annotations

import torch

from mtpforge.building import bad_numbers
from mtpforge.building.output import Output, raw
from mtpforge.planning.steps import InputScaleMove
from mtpforge.tensors import DTYPES
from mtpforge.weights import Reader


def write(reader: Reader, move: InputScaleMove, output: Output) -> None:
    """Write the largest activation maximum that the reads state, in the draft's convention.

    Where both conventions are the same the stored bytes of the largest are written as they are. Computed in float64 and
    rounded once.
    """
    largest, chosen = 0.0, b""
    for ref in move.reads:
        values = reader.tensor(ref)
        bad_numbers.refuse_scale(ref, values)
        stored = values.reshape(-1).to(torch.float64)
        amax = float((move.read_divisor / stored if move.read_reciprocal else stored * move.read_divisor).max())
        if amax > largest:
            largest, chosen = amax, bytes(raw(values))
    same = (move.read_divisor, move.read_reciprocal) == (move.write_divisor, move.write_reciprocal)
    spec = move.write.spec
    if same and len(chosen) == spec.n_bytes and all(r.spec.dtype == spec.dtype for r in move.reads):
        output.add_bytes(memoryview(chosen))
        return
    scale = move.write_divisor / largest if move.write_reciprocal else largest / move.write_divisor
    output.add(torch.full(spec.shape, scale, dtype=getattr(torch, DTYPES[spec.dtype].torch)))
