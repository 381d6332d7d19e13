"""One tensor on its way to the file, checked against the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mtpforge.planning.steps import Write
from mtpforge.tensors import DTYPES
from mtpforge.writing.folder import DraftFolder


class Output:
    """Written from its start on and hashed while the bytes are hot, band by band.

    Where the rows of the weight lie along another axis than the first, no band is one piece of the file: what is added
    is collected, and written once. A dtype or shape that the plan does not state is a bug of an encoder, so it is an
    AssertionError.
    """

    def __init__(self, folder: DraftFolder, write: Write, axis: int = 0) -> None:
        self._folder, self._write, self._axis = folder, write, axis
        self._torch_dtype = f"torch.{DTYPES[write.spec.dtype].torch}"
        self._hash = hashlib.sha256()
        self._n_bytes = 0
        self._whole: Tensor | None = None
        self._n_collected = 0

    def add(self, band: Tensor) -> None:
        """Write what follows along the axis; dtype and the rest of the shape as planned."""
        spec = self._write.spec
        if str(band.dtype) != self._torch_dtype or _others(band.shape, self._axis) != _others(spec.shape, self._axis):
            raise AssertionError(f"{self._write.name}: {band.dtype} {list(band.shape)} made, {spec} planned")
        if not self._axis:
            self.add_bytes(raw(band))
            return
        if self._whole is None:
            self._whole = torch.empty(spec.shape, dtype=band.dtype)
        n_entries = band.shape[self._axis]
        self._whole.narrow(self._axis, self._n_collected, n_entries).copy_(band)
        self._n_collected += n_entries
        if self._n_collected == spec.shape[self._axis]:
            self.add_bytes(raw(self._whole))
            self._whole = None

    def add_bytes(self, data: memoryview) -> None:
        """Write the next bytes."""
        self._hash.update(data)
        self._folder.put(self._write.name, self._n_bytes, data)
        self._n_bytes += len(data)

    def digest(self) -> str:
        """sha256 of the tensor, which must be whole by now."""
        if self._n_bytes != self._write.spec.n_bytes:
            raise AssertionError(f"{self._write.name}: {self._n_bytes} bytes written, {self._write.spec} planned")
        return self._hash.hexdigest()


def _others(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def raw(values: Tensor) -> memoryview:
    """The bytes of a tensor, in row order."""
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().data
