"""Stored weights as torch tensors, one band of rows at a time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.formats import FORMATS
from mtpforge.formats.format import row_parts
from mtpforge.planning import band_rows
from mtpforge.tensors import DTYPES, Quantization, Shape, TensorRef


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The digest so far, in hex."""
        ...


def bands(shape: Shape) -> Iterator[tuple[int, int]]:
    """[first, last) of every band of rows, in order."""
    rows = band_rows(shape)
    return ((first, min(first + rows, shape[0])) for first in range(0, shape[0], rows))


def read(checkpoint: Checkpoint, ref: TensorRef, digest: Digest | None = None, buffer: Tensor | None = None) -> Tensor:
    """The tensor (or the rows) that `ref` names, in its stored dtype and shape; its bytes go into `digest` too.

    buffer: uint8 memory to read into, at least as large; without it the tensor has memory of its own.
    """
    n_bytes = ref.stop - ref.start
    raw = (torch.empty(n_bytes, dtype=torch.uint8) if buffer is None else buffer)[:n_bytes]
    checkpoint.read(ref, raw.numpy().data)
    if digest is not None:
        digest.update(raw.numpy().data)
    return raw.view(getattr(torch, DTYPES[ref.spec.dtype].torch)).reshape(ref.spec.shape)


class _Buffers(threading.local):
    """Memory for the parts of bands, by side and suffix: clearing fresh pages would cost more than reading them."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Tensor] = {}

    def of(self, key: tuple[str, str], n_bytes: int) -> Tensor:
        """At least so many bytes, until the same key is asked for again in this thread."""
        if key not in self.held or len(self.held[key]) < n_bytes:
            self.held[key] = torch.empty(n_bytes, dtype=torch.uint8)
        return self.held[key]


_buffers = _Buffers()


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight [out, in] as a checkpoint holds it: suffix -> tensor. digests: suffix -> sha256 in the making.

    side: "draft" or "source". The parts of a band are valid until this thread reads the next band of the same side.
    """

    checkpoint: Checkpoint
    refs: dict[str, TensorRef]
    shape: Shape
    quantization: Quantization
    digests: dict[str, Digest] = field(default_factory=dict)
    side: str = "draft"

    def matrix(self) -> dict[str, Tensor]:
        """The parts that belong to the whole matrix: global scales, input scales, `weight_shape`."""
        growing = self._growing()
        held = {s: ref for s, ref in self.refs.items() if s not in growing}
        return {s: read(self.checkpoint, ref, self.digests.get(s)) for s, ref in held.items()}

    def band(self, first: int, last: int) -> dict[str, Tensor]:
        """The parts of rows [first, last) that grow with the rows; `first` is a multiple of BAND_ROWS."""
        parts = {}
        for suffix in self._growing() & self.refs.keys():
            # One row of a part covers n rows of the weight, ceil(out / n) in all; n divides `first`: this is exact.
            n_rows = self.refs[suffix].spec.shape[0]
            start = first * n_rows // self.shape[0]
            stop = n_rows if last == self.shape[0] else last * n_rows // self.shape[0]
            ref = self.refs[suffix].rows(start, stop)
            buffer = _buffers.of((self.side, suffix), ref.stop - ref.start)
            parts[suffix] = read(self.checkpoint, ref, self.digests.get(suffix), buffer)
        return parts

    def decode(self, parts: dict[str, Tensor], rows: int) -> Tensor:
        """float32 [rows, in] of a band's parts together with those of the matrix."""
        return FORMATS[self.quantization.format].decode(parts, (rows, self.shape[1]), self.quantization)

    def hashed(self) -> dict[str, str]:
        """sha256 of every part; right once all bands were read, in order."""
        return {suffix: digest.hexdigest() for suffix, digest in self.digests.items()}

    def _growing(self) -> frozenset[str]:
        return row_parts(FORMATS[self.quantization.format].layout, self.shape[1], self.quantization)


def sha256_of(suffixes: tuple[str, ...]) -> dict[str, Digest]:
    """An empty sha256 for each part."""
    return {suffix: hashlib.sha256() for suffix in suffixes}
