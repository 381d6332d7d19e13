"""What methods read of a layer: a vector without torch, weights as float32 in bands of rows."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.formats import FORMATS
from mtpforge.formats.format import BAND_ROWS, row_parts
from mtpforge.sourcing import StoredModule
from mtpforge.tensors import DTYPES, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.formats.compiled import RowKernels

_BAND_WEIGHTS: Final = 4 << 20  # 16 MiB of float32
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


def pieces(stored: StoredModule, first: int, last: int) -> dict[str, TensorRef]:
    """Suffix -> where the parts of the weight's rows [first, last) lie; `first` is a multiple of BAND_ROWS.

    Parts of the whole matrix (a global scale) are whole; the scale of static activations is left out.
    """
    form, (n_rows, columns) = FORMATS[stored.quantization.format], stored.module.shape
    growing = row_parts(form.layout, columns, stored.quantization)
    unread = form.input_scale.suffix if form.input_scale else ""
    found = {}
    for suffix, ref in stored.parts.items():
        if suffix in growing:
            length = ref.spec.shape[0]  # one row of a part covers one or several rows of the weight
            found[suffix] = ref.rows(first * length // n_rows, -(-last * length // n_rows))
        elif suffix != unread:
            found[suffix] = ref
    return found


def bands(checkpoint: Checkpoint, stored: StoredModule, kernels: RowKernels | None = None) -> Iterator[Tensor]:
    """The weight as float32 [rows, in], in bands of whole rows, from bytes that were fetched before.

    With compiled kernels a band is valid until the next one.
    """
    n_rows, columns = stored.module.shape
    height = max(_BAND_WEIGHTS // columns // BAND_ROWS, 1) * BAND_ROWS
    for first in range(0, n_rows, height):
        yield rows(checkpoint, stored, first, min(first + height, n_rows), kernels)


def rows(
    checkpoint: Checkpoint, stored: StoredModule, first: int, last: int, kernels: RowKernels | None = None
) -> Tensor:
    """Rows [first, last) of the weight, float32 [rows, in]; `first` is a multiple of BAND_ROWS."""
    parts = {suffix: tensor(checkpoint, ref) for suffix, ref in pieces(stored, first, last).items()}
    shape = (last - first, stored.module.shape[1])
    if kernels is not None:
        from mtpforge.formats.compiled import packed

        band = packed(parts, shape, stored.quantization)
        if band is not None and (decoded := kernels.decode(band, shape)) is not None:
            return decoded
    return FORMATS[stored.quantization.format].decode(parts, shape, stored.quantization)


def refuse_no_numbers(name: str, values: Tensor) -> Tensor:
    """The values, where all are finite."""
    if not bool(values.isfinite().all()):
        raise MtpforgeError(
            f"`{name}` of the MTP layer holds values that are no numbers",
            fix="download the checkpoint again, or name another `--source`",
        )
    return values


def tensor(checkpoint: Checkpoint, ref: TensorRef) -> Tensor:
    """A stored tensor as it is, from bytes that were fetched before."""
    import torch

    raw = torch.empty(ref.stop - ref.start, dtype=torch.uint8)
    checkpoint.read(ref, raw.numpy().data)
    return raw.view(getattr(torch, DTYPES[ref.spec.dtype].torch)).reshape(ref.spec.shape)
