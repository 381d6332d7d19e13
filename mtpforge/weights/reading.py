"""Bytes of checkpoints as tensors, in buffers that are used again and again.

Fresh buffers cost more than the arithmetic on them: the system has to clear their pages first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from mtpforge.tensors import DTYPES, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

# Fills the memory, exactly as large, with the bytes of a tensor or of some of its rows: Checkpoint.read, say.
Read: TypeAlias = Callable[[TensorRef, memoryview], None]

_ALIGNMENT: Final = 64  # every dtype may be viewed at such a start


class Buffers:
    """Memory of one thread. What is lent is valid until as many more were lent as there are buffers."""

    def __init__(self, count: int = 1, allocate: Callable[[int], Tensor] | None = None) -> None:
        """`allocate`: uint8 [n] for n bytes, None for plain memory."""
        self._allocate = allocate or _plain_memory
        self._held: list[Tensor | None] = [None] * count

    def lend(self, n_bytes: int) -> Tensor:
        """At least so many bytes, uint8."""
        buffer = self._held.pop(0)
        if buffer is None or len(buffer) < n_bytes:
            buffer = self._allocate(n_bytes)
        self._held.append(buffer)
        return buffer


class Reader:
    """Tensors as they are stored, dtype and shape."""

    def __init__(self, read: Read, buffers: Buffers | None = None) -> None:
        """`buffers`: where tensors go; without any, each has memory of its own."""
        self._read, self._buffers = read, buffers

    def tensor(self, ref: TensorRef) -> Tensor:
        """The tensor, or the rows of it, that `ref` names."""
        return self.tensors({"": ref})[""]

    def tensors(self, refs: Mapping[str, TensorRef]) -> dict[str, Tensor]:
        """These tensors, all in one buffer."""
        return self._tensors(refs, self._buffers.lend if self._buffers else _plain_memory)

    def kept(self, refs: Mapping[str, TensorRef]) -> dict[str, Tensor]:
        """These tensors in memory of their own: they stay."""
        return self._tensors(refs, _plain_memory)

    def _tensors(self, refs: Mapping[str, TensorRef], allocate: Callable[[int], Tensor]) -> dict[str, Tensor]:
        import torch

        starts, end = {}, 0
        for key, ref in refs.items():
            starts[key] = end
            end += -(-(ref.stop - ref.start) // _ALIGNMENT) * _ALIGNMENT
        buffer, found = allocate(end), {}
        for key, ref in refs.items():
            span = buffer[starts[key] : starts[key] + ref.stop - ref.start]
            self._read(ref, span.numpy().data)
            found[key] = _apart(span, ref).view(getattr(torch, DTYPES[ref.spec.dtype].torch)).view(ref.spec.shape)
        return found


def _apart(span: Tensor, ref: TensorRef) -> Tensor:
    """The bytes of the tensor alone, where others lie between its rows."""
    if not ref.stride:
        return span
    n_rows = ref.spec.shape[0]
    return span.as_strided((n_rows, ref.spec.n_bytes // n_rows), (ref.stride, 1)).reshape(-1)


def _plain_memory(n_bytes: int) -> Tensor:
    import torch

    return torch.empty(n_bytes, dtype=torch.uint8)
