"""sha256 of tensors, made of their bytes as they are read."""

from __future__ import annotations

import hashlib

from mtpforge.tensors import TensorRef
from mtpforge.weights.reading import Read


class HashedRead:
    """A `Read` that notes what it read."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._hashes: dict[str, hashlib._Hash] = {}

    def __call__(self, ref: TensorRef, into: memoryview) -> None:
        """Fill the memory."""
        self._read(ref, into)
        self._hashes.setdefault(ref.name, hashlib.sha256()).update(into)

    @property
    def sha256(self) -> dict[str, str]:
        """Of every tensor by its full name, in hex; right where all of it was read once, from its start on."""
        return {name: found.hexdigest() for name, found in self._hashes.items()}
