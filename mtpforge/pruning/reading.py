"""What methods read of a layer beside its weights: a vector, without torch; and what no weight may hold."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.tensors import TensorRef

if TYPE_CHECKING:
    from torch import Tensor

_CODES: Final = {"F32": "f", "F16": "e"}


def vector(checkpoint: Checkpoint, ref: TensorRef) -> tuple[float, ...]:
    """The numbers of a small BF16, F16 or F32 tensor, fetched first. Needs no torch."""
    checkpoint.fetch((ref,))
    raw = bytearray(ref.stop - ref.start)
    checkpoint.read(ref, memoryview(raw))
    if ref.spec.dtype == "BF16":  # the upper half of a float32
        halves = struct.unpack(f"<{ref.spec.count}H", raw)
        raw = bytearray(struct.pack(f"<{ref.spec.count}I", *(half << 16 for half in halves)))
    code = _CODES.get(ref.spec.dtype, "f")
    return struct.unpack(f"<{ref.spec.count}{code}", raw)


def refuse_no_numbers(name: str, values: Tensor) -> Tensor:
    """The values, where all are finite."""
    if not bool(values.isfinite().all()):
        raise MtpforgeError(
            f"`{name}` of the MTP layer holds values that are no numbers",
            fix="download the checkpoint again, or name another `--source`",
        )
    return values
