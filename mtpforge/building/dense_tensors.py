"""Dense tensors, which pass without a format, row by row: norms, biases, the router, what stays BF16."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mtpforge.building import bad_numbers
from mtpforge.building.output import Output
from mtpforge.errors import MtpforgeError
from mtpforge.planning.steps import Carry
from mtpforge.tensors import DTYPES, TensorRef
from mtpforge.weights import Reader

STEP_BYTES = 1 << 20  # larger reads leave the second cache: steps of 8 MiB took five times the CPU


def carry(reader: Reader, move: Carry, output: Output) -> None:
    """Copy or cast one dense tensor; kept rows only where the plan says so."""
    for first, values in _pieces(reader, move):
        bad_numbers.refuse_no_numbers(move.read, values, (0, first))
        output.add(_cast(move, values))


def row_pieces(ref: TensorRef) -> Iterator[tuple[int, TensorRef]]:
    """The tensor in pieces of whole rows of about STEP_BYTES; (0, the whole) for a scalar or an empty one."""
    if not ref.spec.shape or not ref.spec.n_bytes:
        yield 0, ref
        return
    n_rows = ref.spec.shape[0]
    height = max(STEP_BYTES * n_rows // ref.spec.n_bytes, 1)
    for first in range(0, n_rows, height):
        yield first, ref.rows(first, min(first + height, n_rows))


def _pieces(reader: Reader, move: Carry) -> Iterator[tuple[int, Tensor]]:
    if move.rows is None:
        for first, ref in row_pieces(move.read):
            yield first, reader.tensor(ref)
        return
    for first, last in _runs(move.rows):
        for at, ref in row_pieces(move.read.rows(first, last)):
            yield first + at, reader.tensor(ref)


def _runs(rows: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Ascending rows as half-open runs."""
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield rows[start], rows[i - 1] + 1
            start = i


def _cast(move: Carry, values: Tensor) -> Tensor:
    """The values in the write's dtype; a finite number that has no finite counterpart there is refused."""
    dtype = DTYPES[move.write.spec.dtype].torch
    if move.read.spec.dtype == move.write.spec.dtype:
        return values
    cast = values.to(getattr(torch, dtype))
    if cast.numel() and not math.isfinite(float(cast.float().abs().amax())):
        raise MtpforgeError(
            f"a value does not fit into {dtype}",
            where=move.read.place,
            fix="choose another `--source`",
        )
    return cast
