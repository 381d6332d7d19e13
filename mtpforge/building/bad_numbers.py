"""Refusals: numbers that no weight may hold, named by file, tensor and index before anything is made of them.

NaN poisons what it meets: one NaN weight makes NVFP4's global scale fall back to 1 and the rest of the matrix coarse,
an Inf empties it. A zero scale erases what it covers. Both load, and only the drafts are rejected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from mtpforge.building.reading import Band
from mtpforge.errors import MtpforgeError
from mtpforge.formats import FORMATS
from mtpforge.planning.steps import Move
from mtpforge.tensors import TensorRef

# dtype -> integer view, bits without the sign, and the smallest of them that is no number (exponent all ones; E4M3 has
# one NaN and no Inf).
_NO_NUMBER: Final = {
    "F64": (torch.int64, (1 << 63) - 1, 0x7FF << 52),
    "F32": (torch.int32, (1 << 31) - 1, 0xFF << 23),
    "BF16": (torch.int16, 0x7FFF, 0x7F80),
    "F16": (torch.int16, 0x7FFF, 0x7C00),
    "F8_E5M2": (torch.uint8, 0x7F, 0x7C),
    "F8_E4M3": (torch.uint8, 0x7F, 0x7F),
    "F8_E8M0": (torch.uint8, 0xFF, 0xFF),
}


@contextmanager
def named(move: Move) -> Iterator[None]:
    """Name the weight in an error of a format, which knows numbers but no names."""
    try:
        yield
    except MtpforgeError as error:
        error.place = error.place or next(iter(move.reads.values())).place
        raise


def is_scale(suffix: str) -> bool:
    """Whether a part is a scale, by the field's spelling."""
    return "scale" in suffix


def refuse_no_numbers(ref: TensorRef, values: Tensor, first_row: int = 0) -> None:
    """Refuse a NaN or Inf among stored numbers; integers pass. `first_row` is where `values` starts in the tensor."""
    if ref.spec.dtype not in _NO_NUMBER or not values.numel():
        return
    view, mask, limit = _NO_NUMBER[ref.spec.dtype]
    bits = values.view(view) & mask
    if int(bits.amax()) >= limit:
        raise _error(ref, f"{_place(bits >= limit, first_row)} is not a finite number")


def refuse_values(move: Move, band: Band, values: Tensor) -> Tensor:
    """Largest magnitude (float32 scalar) of decoded values; NaN and Inf are refused."""
    found = largest(values)
    if not torch.isfinite(found):
        ref = next(iter(move.reads.values()))
        place = _place(~torch.isfinite(values), band.first)
        raise _error(ref, f"{place} of the decoded weight is not a finite number")
    return found


def largest(values: Tensor) -> Tensor:
    """Largest magnitude (float32 scalar); NaN or Inf where any value is, with nobody told."""
    low, high = torch.aminmax(values)
    return torch.maximum(-low, high)


def refuse_scale(ref: TensorRef, values: Tensor, first_row: int = 0) -> None:
    """Refuse a scale that is NaN, Inf or zero, and one below zero that turns the sign of a whole matrix."""
    refuse_no_numbers(ref, values, first_row)
    if _turns_all(values):
        raise _error(ref, "its value is a negative scale")
    zero = _zeros(values)
    if zero.any():
        raise _error(ref, f"{_place(zero, first_row)} is a zero scale")


def refuse_parts(move: Move, band: Band) -> None:
    """Refuse what a part that is copied may not hold: bad scales, and numbers that are none."""
    refuse_scales(move, band)
    for suffix, tensor in band.parts.items():
        if not is_scale(suffix):
            refuse_no_numbers(move.reads[suffix], tensor, _start_row(band, move, suffix))


def refuse_scales(move: Move, band: Band) -> None:
    """Refuse bad scales of a band. A group or block whose scale is zero passes if all its codes are zero."""
    suspects = []
    for suffix, tensor in band.parts.items():
        if not is_scale(suffix) or (suffix not in band.refs and band.first) or _is_sound(move.reads[suffix], tensor):
            continue
        ref, first_row = move.reads[suffix], _start_row(band, move, suffix)
        if suffix in band.refs and move.stored.strategy in {"group", "block"}:
            refuse_no_numbers(ref, tensor, first_row)
            if _zeros(tensor).any():
                suspects.append(suffix)
        else:
            refuse_scale(ref, tensor, first_row)
    for suffix in suspects:
        _refuse_erased(move, band, suffix)


def _is_sound(ref: TensorRef, scales: Tensor) -> bool:
    """Whether no scale is NaN, Inf, zero or turns all: one pass over the bits, as nearly every band is."""
    if ref.spec.dtype not in _NO_NUMBER or not scales.numel() or _turns_all(scales):
        return False
    view, mask, limit = _NO_NUMBER[ref.spec.dtype]
    low, high = (scales.view(view) & mask).aminmax()
    return int(low) > 0 and int(high) < limit


def _turns_all(scales: Tensor) -> bool:
    """Whether the one scale of a matrix is negative; those of groups may be, where a quantizer chose them so."""
    return scales.numel() == 1 and float(scales) < 0


def _refuse_erased(move: Move, band: Band, suffix: str) -> None:
    """Refuse a zero scale over codes that are not zero: with 1 in its place, its codes show."""
    tensor = band.parts[suffix]
    zero = _zeros(tensor)
    ones = torch.where(zero, torch.ones((), dtype=torch.float32), tensor.float()).to(tensor.dtype)
    decode = FORMATS[move.stored.format].decode
    shown_codes = decode({**band.parts, suffix: ones}, band.shape, move.stored)
    hidden = shown_codes != decode(band.parts, band.shape, move.stored)
    if hidden.any():
        covered = _place(hidden, band.first)
        place = _place(zero, _start_row(band, move, suffix))
        raise _error(move.reads[suffix], f"{place} is a zero scale over codes that are not zero ({covered})")


def _start_row(band: Band, move: Move, suffix: str) -> int:
    """The row of the whole part that the band's part starts at; 0 for a part of the whole matrix."""
    whole = move.reads[suffix]
    part = band.refs.get(suffix, whole)
    row_bytes = (whole.stop - whole.start) // max(whole.spec.shape[0], 1) if whole.spec.shape else 1
    return (part.start - whole.start) // max(row_bytes, 1)


def _zeros(values: Tensor) -> Tensor:
    return values.float() == 0


def _place(bad: Tensor, first_row: int) -> str:
    """Index of the first bad value in the whole tensor: `value [row, column]`; `its value` for a scalar."""
    place = [int(i) for i in bad.nonzero()[0]]
    return f"value {[place[0] + first_row, *place[1:]]}" if place else "its value"


def _error(ref: TensorRef, why: str) -> MtpforgeError:
    return MtpforgeError(
        "the source holds a number that no weight may hold",
        where=ref.place,
        why=why,
        fix="download the file again, or choose another `--source`",
    )
