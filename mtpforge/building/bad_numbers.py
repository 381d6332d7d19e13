"""Refusals: numbers that no weight may hold, named by file, tensor and index before anything is made of them.

NaN poisons what it meets: one NaN weight makes NVFP4's global scale fall back to 1 and the rest of the matrix coarse,
an Inf empties it. A zero scale erases what it covers. Both load, and only the drafts are rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeAlias

import torch
from torch import Tensor

from mtpforge.errors import MtpforgeError, shown
from mtpforge.planning.steps import Move
from mtpforge.tensors import TensorRef
from mtpforge.weights import Band

Start: TypeAlias = tuple[int, int]  # axis of a stored tensor, and the place on it where some of it begins
_START: Final = (0, 0)

# dtype -> integer view, bits without the sign, and the smallest of them that is no number (exponent all ones; E4M3 has
# one NaN and no Inf).
_NO_NUMBER: Final = {
    torch.float64: (torch.int64, (1 << 63) - 1, 0x7FF << 52),
    torch.float32: (torch.int32, (1 << 31) - 1, 0xFF << 23),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80),
    torch.float16: (torch.int16, 0x7FFF, 0x7C00),
    torch.float8_e5m2: (torch.uint8, 0x7F, 0x7C),
    torch.float8_e4m3fn: (torch.uint8, 0x7F, 0x7F),
    torch.float8_e8m0fnu: (torch.uint8, 0xFF, 0xFF),
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


def refuse_no_numbers(ref: TensorRef, values: Tensor, start: Start = _START) -> None:
    """Refuse a NaN or Inf among stored numbers; integers pass. `start`: where in the tensor `values` begins."""
    if values.dtype not in _NO_NUMBER or not values.numel():
        return
    view, mask, limit = _NO_NUMBER[values.dtype]
    bits = values.view(view) & mask
    if int(bits.amax()) >= limit:
        raise _error(ref, f"{_place(bits >= limit, start)} is not a finite number")


def refuse_values(move: Move, band: Band, values: Tensor) -> Tensor:
    """Largest magnitude (float32 scalar) of decoded values; NaN and Inf are refused."""
    found = largest(values)
    if not torch.isfinite(found):
        ref = next(iter(move.reads.values()))
        place = _place(~torch.isfinite(values), (0, band.first))
        raise _error(ref, f"{place} of the decoded weight is not a finite number")
    return found


def refuse_cut_off(move: Move, parts: Mapping[str, Tensor]) -> None:
    """Refuse encoded parts whose scales came out as the largest number of F16, 65504: they cut their weights off.

    Encoders clamp a scale to its dtype, as the formats' libraries do, who tell nobody. No other dtype of scales is too
    small for a finite float32 weight. A group needs that much from a weight of 491,280 on in 4 bits: no layer that was
    trained has one.
    """
    for suffix, part in parts.items():
        if is_scale(suffix) and part.dtype is torch.float16 and float(part.amax()) >= torch.finfo(part.dtype).max:
            raise MtpforgeError(
                f"a weight of `{shown(move.module)}` is too large for scales in F16",
                where=next(iter(move.reads.values())).place,
                why="its group needs a scale above 65,504, the largest number of F16, and would be cut off below that",
                fix="choose another `--source`, or a `--scheme` whose scales are BF16 where the target can state it",
            )


def largest(values: Tensor) -> Tensor:
    """Largest magnitude (float32 scalar); NaN or Inf where any value is, with nobody told."""
    low, high = torch.aminmax(values)
    return torch.maximum(-low, high)


def refuse_scale(ref: TensorRef, values: Tensor, start: Start = _START) -> None:
    """Refuse a scale that is NaN, Inf or zero, and one below zero that turns the sign of a whole matrix."""
    refuse_no_numbers(ref, values, start)
    if _turns_all(values):
        raise _error(ref, "its value is a negative scale")
    zero = _zeros(values)
    if zero.any():
        raise _error(ref, f"{_place(zero, start)} is a zero scale")


def refuse_parts(move: Move, band: Band) -> None:
    """Refuse what a part that is copied may not hold: bad scales, and numbers that are none."""
    refuse_scales(move, band)
    for suffix, tensor in band.parts.items():
        if not is_scale(suffix):
            refuse_no_numbers(move.reads[suffix], tensor, band.starts.get(suffix, _START))


def refuse_scales(move: Move, band: Band) -> None:
    """Refuse bad scales of a band. A group or block whose scale is zero passes if all its codes are zero."""
    suspects = []
    for suffix, part in band.parts.items():
        if not is_scale(suffix) or (suffix not in band.starts and band.first):
            continue
        # Bytes are exponents (OCP Microscaling): 0 is a power of two, 255 no number.
        tensor = part.view(torch.float8_e8m0fnu) if part.dtype == torch.uint8 else part
        if _are_usual(tensor):
            continue
        ref, start = move.reads[suffix], band.starts.get(suffix, _START)
        if suffix in band.starts and move.stored.strategy in {"group", "block"}:
            refuse_no_numbers(ref, tensor, start)
            if _zeros(tensor).any():
                suspects.append(suffix)
        else:
            refuse_scale(ref, tensor, start)
    for suffix in suspects:
        _refuse_erased(move, band, suffix)


def _are_usual(scales: Tensor) -> bool:
    """Whether no scale is NaN, Inf, zero or turns all: one pass over the bits, as nearly every band is."""
    if scales.dtype not in _NO_NUMBER or not scales.numel() or _turns_all(scales):
        return False
    view, mask, limit = _NO_NUMBER[scales.dtype]
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
    hidden = replace(band, parts={**band.parts, suffix: ones}).decoded() != band.decoded()
    if hidden.any():
        covered = _place(hidden, (0, band.first))
        place = _place(zero, band.starts.get(suffix, _START))
        raise _error(move.reads[suffix], f"{place} is a zero scale over codes that are not zero ({covered})")


def _zeros(values: Tensor) -> Tensor:
    return values.float() == 0


def _place(bad: Tensor, start: Start) -> str:
    """Index of the first bad value in the whole tensor: `value [row, column]`; `its value` for a scalar."""
    place = [int(i) for i in bad.nonzero()[0]]
    if not place:
        return "its value"
    axis, entry = start
    place[axis] += entry
    return f"value {place}"


def _error(ref: TensorRef, why: str) -> MtpforgeError:
    return MtpforgeError(
        "the source holds a number that no weight may hold",
        where=ref.place,
        why=why,
        fix="download the file again, or choose another `--source`",
    )
