"""One weight of the draft, read from disk: whether its numbers are sane, and whether they are the source's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from mtpforge.formats import FORMATS
from mtpforge.methods import RTN, Method
from mtpforge.verifying.unclaimed import Unclaimed
from mtpforge.weights import Band, StoredWeight
from mtpforge.weights.bands import bands

if TYPE_CHECKING:
    from mtpforge.weights.kernels import RowKernels

# A quantized matrix further off than this shares no more than its size with the source, whatever its scales allow.
MOST_RELATIVE: Final = 0.7
_FITTED: Final = "what fitting codes to inputs could leave"
# dtype of a scale -> signed integers of its size, and the bits of the first positive that is no number
_BITS: Final = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float8_e4m3fn: (torch.int8, 0x7F),
}


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found in one tensor or matrix.

    numbers, values: sentences about what is wrong, empty where nothing is. relative_error: Frobenius, against the
    source, None where there is none. scales: suffix -> value of every scale of the whole matrix. n_compared: weights.
    is_zero: every weight is zero, and so is the source's. rtn_error: relative error that round-to-nearest would leave,
    where the scales were searched. standing_out: a sentence about groups whose error is unlike that of all others.
    has_strays: whether it holds codes too far for the nearest, None where that is not asked: only of codes of which no
    manifest says how they were found. values_if_fitted: what `values` is if they were fitted.
    """

    module: str
    numbers: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    relative_error: float | None = None
    scales: dict[str, float] = field(default_factory=dict)
    n_compared: int = 0
    is_zero: bool = False
    rtn_error: float | None = None
    standing_out: str = ""
    has_strays: bool | None = None
    values_if_fitted: tuple[str, ...] = ()


def weight(
    module: str,
    draft: StoredWeight,
    source: StoredWeight | None,
    *,
    anew: bool = False,
    method: Method = RTN,
    kernels: RowKernels | None = None,
    is_claimed: bool = True,
) -> Examined:
    """A matrix, band by band; every part of the draft is read once, in order.

    anew: codes of the source's own format were made anew, so that rounding is allowed where a copy would be exact.
    method: how the draft's codes are said to be found. is_claimed: whether a manifest says so.
    """
    opened = draft.open()
    matrix = opened.matrix
    numbers = _Numbers(draft)
    numbers.matrix(matrix)
    tally = None if source is None else _Tally(draft, source, matrix, method, anew=anew, is_claimed=is_claimed)
    for first, last in bands(draft.shape):
        band = opened.band(first, last)
        own = None if tally is None else tally.opened.band(first, last)
        if tally and own and kernels and _are_usual(band.row_parts) and tally.is_near(kernels, band, own):
            numbers.is_zero = False
            continue
        values = band.decoded()
        numbers.band(band, values)
        if tally is not None and own is not None:
            tally.compare(band, own, values)
    totals = {suffix: float(part) for suffix, part in matrix.items() if _is_scale(suffix, part) and part.numel() == 1}
    found = numbers.findings(source_is_zero=tally is not None and tally.is_zero)
    if tally is None:
        return Examined(module, found, scales=totals)
    n_weights, both_zero = math.prod(draft.shape), numbers.is_zero and tally.is_zero
    own_error, rtn_error = tally.relative_error, tally.rtn_error
    wrong = tally.findings(tally.beyond, "equal" if tally.same else method.may_leave)
    made = Examined(module, found, wrong, own_error, totals, n_weights, both_zero, rtn_error)
    if tally.unclaimed is None:
        return made
    if_fitted = tally.findings(tally.far, _FITTED)
    stands_out, strays = "" if if_fitted else tally.unclaimed.finding(), tally.unclaimed.has_strays
    return replace(made, standing_out=stands_out, has_strays=strays, values_if_fitted=if_fitted)


def plain(name: str, held: Tensor, reference: Tensor | None) -> Examined:
    """A norm or a bias: finite, and equal to the source's, cast to the dtype that the engine keeps. A bias may be 0."""
    numbers = () if bool(torch.isfinite(held).all()) else ("NaN or Inf",)
    is_zero = name.endswith(".weight") and not bool(held.any())
    if is_zero and (reference is None or bool(reference.any())):
        numbers = ("every weight is zero",)
    if reference is None:
        return Examined(name, numbers)
    wanted = reference.to(held.dtype)
    differing = int((held != wanted).sum())
    values = (f"{differing} of {held.numel()} differ from the source",) if differing else ()
    error = float((held.float() - reference.float()).norm() / reference.float().norm().clamp_min(1e-30))
    return Examined(name, numbers, values, error, n_compared=held.numel(), is_zero=is_zero and not numbers)


def _are_usual(parts: Mapping[str, Tensor]) -> bool:
    """Whether every scale is a number above zero, told by its bits: as nearly all are."""
    for suffix, part in parts.items():
        if _is_scale(suffix, part):
            view, infinity = _BITS[part.dtype]
            low, high = part.view(view).aminmax()
            if int(low) <= 0 or int(high) >= infinity:
                return False
    return True


def _is_scale(suffix: str, part: Tensor) -> bool:
    return "scale" in suffix and part.is_floating_point()


class _Numbers:
    """Facts about the numbers of one matrix, gathered over its bands."""

    def __init__(self, draft: StoredWeight) -> None:
        self.draft = draft
        self.wrong: dict[str, int] = {}
        self.is_zero = True

    def matrix(self, parts: Mapping[str, Tensor]) -> None:
        """Scales of the whole matrix: finite and above zero. A stored shape is the shape."""
        for suffix, part in parts.items():
            if _is_scale(suffix, part):
                self._count(f"{suffix} is NaN or Inf", ~torch.isfinite(part.float()))
                self._count(f"{suffix} is not above zero", part.float() <= 0)
            elif not part.is_floating_point() and tuple(part.tolist()) != self.draft.shape:
                self._count(f"{suffix} says {part.tolist()}, the weight is {list(self.draft.shape)}")

    def band(self, band: Band, values: Tensor) -> None:
        """Scales of rows, blocks and groups; decoded weights."""
        low, high = torch.aminmax(values)
        self.is_zero = self.is_zero and float(low) == 0 == float(high)
        if not (math.isfinite(float(low)) and math.isfinite(float(high))):
            self._count("weights decode to NaN or Inf", ~torch.isfinite(values))
        scales = {suffix: part for suffix, part in band.row_parts.items() if _is_scale(suffix, part)}
        for suffix, part in scales.items():
            wide = part.float()
            self._count(f"{suffix} holds NaN or Inf", ~torch.isfinite(wide))
            self._count(f"{suffix} is below zero", wide < 0)
            if self.draft.quantization.strategy == "channel":
                self._count(f"{suffix} is zero", wide == 0)
        if any(bool((part.float() == 0).any()) for part in scales.values()):
            ones = {s: torch.where(p.float() == 0, 1.0, p.float()).to(p.dtype) for s, p in scales.items()}
            coded = replace(band, parts={**band.parts, **ones}).decoded()
            self._count("scales are zero under codes that are not", (coded != 0) & (values == 0))

    def findings(self, *, source_is_zero: bool) -> tuple[str, ...]:
        """A sentence each, with how many elements it is about."""
        found = [f"{what} ({n} of them)" if n > 1 else what for what, n in self.wrong.items()]
        if self.is_zero and not source_is_zero:
            found.append("every weight is zero")
        return tuple(found)

    def _count(self, what: str, where: Tensor | None = None) -> None:
        n = 1 if where is None else int(where.sum())
        if n:
            self.wrong[what] = self.wrong.get(what, 0) + n


class _Places:
    """Weights of a matrix that may not be as they are: how many, and the first of them in words."""

    def __init__(self) -> None:
        self.n, self.first = 0, ""

    def add(self, first: int, where: Tensor, values: Tensor, reference: Tensor) -> None:
        """Those of a band from row `first` on: bool [rows, in]."""
        n = int(where.sum())
        if n and not self.n:
            row, column = (int(i) for i in where.nonzero()[0])
            ours, theirs = float(values[row, column]), float(reference[row, column])
            self.first = f"[{first + row}, {column}] is {ours:.6g}, the source {theirs:.6g}"
        self.n += n


class _Tally:
    """The difference between a draft's matrix and the source's, gathered over bands."""

    def __init__(
        self,
        draft: StoredWeight,
        source: StoredWeight,
        matrix: Mapping[str, Tensor],
        method: Method,
        *,
        anew: bool,
        is_claimed: bool,
    ) -> None:
        self.draft, self.opened = draft, source.open()
        self.same = not anew and _same_form(draft, source) and _equal(matrix, self.opened.matrix)
        self.form, self.method = FORMATS[draft.quantization.format], method
        untold = not is_claimed and not self.same and Unclaimed.serves(self.form, draft.quantization)
        self.unclaimed = Unclaimed(self.form, draft.quantization) if untold else None
        self.difference = self.reference = self.rtn = 0.0
        self.beyond, self.far = _Places(), _Places()
        self.is_zero = True

    def is_near(self, kernels: RowKernels, band: Band, own: Band) -> bool:
        """Add a band by compiled kernels, if nothing is wrong with it; whatever may be is left to `compare`."""
        if self.same:
            return False
        if self.unclaimed is not None:
            sums = self.unclaimed.usual(kernels, band, own)
        elif self.method.judge_rows is not None:
            sums = self.method.judge_rows(kernels, band, own, self.form)
        else:
            return False
        # Weights that are all zero are off by all that the source's are; squares may underflow to 0, or overflow.
        if sums is None or not sums[0] < sums[1] < math.inf:
            return False
        self.difference, self.reference = self.difference + sums[0], self.reference + sums[1]
        self.rtn += sums[2]
        self.is_zero = False
        return True

    def compare(self, band: Band, own: Band, values: Tensor) -> None:
        """Add a band of the draft, decoded to `values`, and the source's."""
        if self.same and _equal(band.row_parts, own.row_parts):  # copied byte for byte: nothing to decode
            self.reference += float(torch.linalg.vector_norm(values)) ** 2
            self.is_zero = self.is_zero and self.reference == 0
            return
        reference = own.decoded()
        difference = (values - reference).abs_()
        self.difference += float(torch.linalg.vector_norm(difference)) ** 2
        self.reference += float(torch.linalg.vector_norm(reference)) ** 2
        self.is_zero = self.is_zero and self.reference == 0
        if self.same:
            self.beyond.add(band.first, ~(difference <= 0), values, reference)
        elif self.unclaimed is not None:
            beyond, far = self.unclaimed.add(band.first, band.parts, reference, values)
            self.beyond.add(band.first, beyond, values, reference)
            self.far.add(band.first, far, values, reference)
        else:
            judged = self.method.judge(band.parts, self.form, self.draft.quantization, reference, values)
            self.rtn += judged.rtn
            self.beyond.add(band.first, judged.beyond.view_as(values), values, reference)

    @property
    def relative_error(self) -> float:
        """Frobenius norm of the difference over that of the source."""
        return math.sqrt(self.difference / self.reference) if self.reference else math.sqrt(self.difference)

    @property
    def rtn_error(self) -> float | None:
        """The relative error that round-to-nearest would leave; None where nothing was searched."""
        searched_here = self.method.is_searched and not self.same and self.reference
        return math.sqrt(self.rtn / self.reference) if searched_here else None

    def findings(self, beyond: _Places, allowed: str) -> tuple[str, ...]:
        """Why these are not the source's weights, empty where they are."""
        if beyond.n:
            return (f"{beyond.n} of {math.prod(self.draft.shape)} weights are not {allowed}: {beyond.first}",)
        if not self.relative_error <= MOST_RELATIVE and not self.is_zero:
            return (f"relative error {self.relative_error:.3g}: its scales allow it, the source does not",)
        return ()


def _same_form(draft: StoredWeight, source: StoredWeight) -> bool:
    """Whether the same parts mean the same numbers; what one scale covers is told by their shapes."""
    ours, theirs = draft.quantization, source.quantization
    keys = ("format", "bits", "dtype", "block", "symmetric")
    shapes = [
        {s: ref.spec.shape for s, ref in stored.refs.items() if not s.startswith("input")} for stored in (draft, source)
    ]
    return shapes[0] == shapes[1] and all(getattr(ours, key) == getattr(theirs, key) for key in keys)


def _equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether all weight parts hold the same numbers; scales of activations are another matter."""
    return all(
        suffix in theirs and ours[suffix].shape == theirs[suffix].shape and _equal_part(ours[suffix], theirs[suffix])
        for suffix in ours
        if not suffix.startswith("input")
    )


def _equal_part(ours: Tensor, theirs: Tensor) -> bool:
    if ours.dtype == theirs.dtype:
        return torch.equal(ours.reshape(-1).view(torch.uint8), theirs.reshape(-1).view(torch.uint8))
    return torch.equal(ours.float(), theirs.float())  # a scale that was widened
