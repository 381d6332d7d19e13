"""Bytes of a checkpoint as tensors, a band of rows at a time, in buffers that are used again and again.

Fresh buffers cost more than the arithmetic on them: the system has to clear their pages first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_by_origin
from mtpforge.formats import FORMATS
from mtpforge.formats.format import Specs, row_parts
from mtpforge.planning.steps import Move
from mtpforge.tensors import DTYPES, Shape, TensorRef

_ALIGNMENT = 64  # every dtype may be viewed at such a start


@dataclass(frozen=True, slots=True)
class Band:
    """Rows [first, last) of a weight: its parts as they are stored, refs to where they came from, and its shape."""

    first: int
    last: int
    shape: Shape
    refs: Mapping[str, TensorRef]
    parts: Mapping[str, Tensor]


class Reader:
    """Reads tensors for one thread. What it returns is valid until its next call, with two buffers the one after."""

    def __init__(
        self, checkpoints: Mapping[str, Checkpoint], allocate: Callable[[int], Tensor] | None = None, buffers: int = 1
    ) -> None:
        """`allocate`: uint8 [n] for n bytes, None for plain memory. `buffers`: how many are used in turn."""
        self._checkpoints = checkpoints
        self._allocate = allocate or _plain_memory
        self._buffers = [_plain_memory(0)] * buffers

    def placing(self) -> AbstractContextManager[None]:
        """Says in an error about a tensor which checkpoint holds it."""
        return errors_by_origin(self._checkpoints)

    def tensors(self, refs: Mapping[str, TensorRef]) -> dict[str, Tensor]:
        """These tensors, dtype and shape as stored, all in one buffer."""
        starts, end = {}, 0
        for key, ref in refs.items():
            starts[key] = end
            end += -(-ref.spec.n_bytes // _ALIGNMENT) * _ALIGNMENT
        buffer = self._buffers.pop(0)
        if len(buffer) < end:
            buffer = self._allocate(end)
        self._buffers.append(buffer)
        return {key: self._read(ref, buffer[starts[key] :]) for key, ref in refs.items()}

    def tensor(self, ref: TensorRef) -> Tensor:
        """One tensor."""
        return self.tensors({"": ref})[""]

    def matrix_parts(self, move: Move) -> dict[str, Tensor]:
        """The parts of a weight that belong to the whole of it (a global scale, `weight_shape`); they stay valid."""
        growing = growing_parts(move)
        refs = {suffix: ref for suffix, ref in move.reads.items() if suffix not in growing}
        return {suffix: tensor.clone() for suffix, tensor in self.tensors(refs).items()}

    def bands(self, move: Move, height: int) -> Iterator[Band]:
        """The weight in bands of `height` rows (the last may be shorter), from the first row on."""
        matrix = self.matrix_parts(move)
        for first in range(0, move.shape[0], height):
            yield self.band(move, matrix, first, min(first + height, move.shape[0]))

    def band(self, move: Move, matrix: Mapping[str, Tensor], first: int, last: int) -> Band:
        """Rows [first, last) of a weight; `first` is a multiple of BAND_ROWS."""
        begin, end = _leading(move, first), _leading(move, last)
        refs = {suffix: move.reads[suffix].rows(begin[suffix], end[suffix]) for suffix in begin}
        parts = self.tensors(refs) | dict(matrix)
        return Band(first, last, (last - first, move.shape[1]), refs, parts)

    def _read(self, ref: TensorRef, buffer: Tensor) -> Tensor:
        span = buffer[: ref.spec.n_bytes]
        self._checkpoints[ref.origin].read(ref, span.numpy().data)
        return span.view(getattr(torch, DTYPES[ref.spec.dtype].torch)).view(ref.spec.shape)


def _plain_memory(n_bytes: int) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8)


def growing_parts(move: Move) -> frozenset[str]:
    """Suffixes of the stored parts that grow with the rows of the weight."""
    return row_parts(FORMATS[move.stored.format].layout, move.shape[1], move.stored)


def _leading(move: Move, n_rows: int) -> dict[str, int]:
    """Length of the leading axis of each growing part that the first `n_rows` rows take."""
    if not n_rows:
        return dict.fromkeys(growing_parts(move), 0)
    layout = FORMATS[move.stored.format].layout
    band, whole = layout((n_rows, move.shape[1]), move.stored), layout(move.shape, move.stored)
    return {suffix: _entries(move, suffix, n_rows, band, whole) for suffix in growing_parts(move)}


def _entries(move: Move, suffix: str, n_rows: int, band: Specs, whole: Specs) -> int:
    stored = move.reads[suffix].spec.shape[0]
    if n_rows == move.shape[0]:
        return stored
    if stored == whole[suffix].shape[0]:
        return band[suffix].shape[0]
    rows_per_entry = -(-move.shape[0] // stored)  # an older packing of whole values per word (pack_quantized)
    return -(-n_rows // rows_per_entry)
