"""One tensor on its way to the file, checked against the plan."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from mtpforge.planning.steps import Write
from mtpforge.tensors import DTYPES
from mtpforge.writing.folder import DraftFolder


class Output:
    """Written from its start on, row by row, and hashed while the bytes are hot.

    A dtype or shape that the plan does not state is a bug of an encoder, so it is an AssertionError.
    """

    def __init__(self, folder: DraftFolder, write: Write) -> None:
        self._folder, self._write = folder, write
        self._torch_dtype = f"torch.{DTYPES[write.spec.dtype].torch}"
        self._hash = hashlib.sha256()
        self._n_bytes = 0

    def add(self, rows: Tensor) -> None:
        """Write the next rows, dtype and trailing shape as planned."""
        spec = self._write.spec
        if str(rows.dtype) != self._torch_dtype or rows.shape[1:] != spec.shape[1:]:
            raise AssertionError(f"{self._write.name}: {rows.dtype} {list(rows.shape)} made, {spec} planned")
        self.add_bytes(raw(rows))

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


def raw(values: Tensor) -> memoryview:
    """The bytes of a tensor, in row order."""
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().data
