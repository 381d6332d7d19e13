"""What happened to a weight that is not the source's: a sentence that names the usual suspects.

Looks at the first band of rows only, of the weight and of those that it may have been taken for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import torch
from torch import Tensor

from mtpforge.formats.format import BAND_ROWS
from mtpforge.weights import Band, StoredWeight

_ALIKE: Final = 0.35  # relative error of the coarsest format on heavy tails stays below
_PARALLEL: Final = 0.8  # cosine
_SAME_SIZE: Final = 2.0
_STEPS_APART: Final = 1.2  # scales; rounding puts two weights of a group at most so far apart
_NEARLY_ALL: Final = 0.95  # of a band; zero points at the edge of their range may be clamped

Candidate = tuple[str, Callable[[], Tensor]]


def first_band(weight: StoredWeight) -> Tensor:
    """The first rows, decoded: float32 [at most 128, in]."""
    return _first(weight).decoded()


def _first(weight: StoredWeight) -> Band:
    return weight.open().band(0, min(BAND_ROWS, weight.shape[0]))


def explain(draft: StoredWeight, own: StoredWeight, others: Iterable[Candidate]) -> str:
    """Why the draft's weight is not its own source's. others: (sentence, decoded first band) of what else it may be."""
    held, wanted = first_band(draft), first_band(own)
    suspicions = (_zero(held), _scaled(held, wanted), _shifted(draft, held, wanted))
    return next((s for s in (*suspicions, *_taken_for(held, others)) if s), "")


def _zero(held: Tensor) -> str:
    return "every weight is zero" if not bool(held.any()) else ""


def _scaled(held: Tensor, wanted: Tensor) -> str:
    """The right weights times a number: a matrix-wide scale inverted, left out, or of another matrix."""
    ours, theirs = held.double(), wanted.double()
    norms = ours.norm(), theirs.norm()
    if not all(bool(torch.isfinite(n)) and float(n) > 0 for n in norms):
        return ""
    cosine = float((ours * theirs).sum() / (norms[0] * norms[1]))
    ratio = float(norms[0] / norms[1])
    if cosine > _PARALLEL and not 1 / _SAME_SIZE < ratio < _SAME_SIZE:
        return f"decodes to {ratio:.3g} times the source: its global scale is inverted, left out or another's"
    return ""


def _shifted(draft: StoredWeight, held: Tensor, wanted: Tensor) -> str:
    """Off by a whole number of scales, the same within each group: zero points are at fault."""
    if draft.quantization.symmetric:
        return ""
    rows = held.shape[0]
    scales = [p for s, p in _first(draft).row_parts.items() if "scale" in s and p.is_floating_point()]
    groups = scales[0].reshape(rows, -1).float()
    steps = (held - wanted).view(rows, groups.shape[1], -1) / groups[..., None]
    middle = steps.median(-1).values
    if float(((steps - middle[..., None]).abs() < _STEPS_APART).float().mean()) < _NEARLY_ALL:
        return ""
    offsets = middle.round()
    if not bool(offsets.any()):
        return ""
    first = float(offsets[offsets != 0][0])
    how = f"by {first:+.0f}" if bool((offsets == first).float().mean() > _NEARLY_ALL) else "by group"
    return f"zero points are shifted {how}"


def _taken_for(held: Tensor, others: Iterable[Candidate]) -> Iterator[str]:
    for sentence, decoded in others:
        other = decoded()
        if other.shape == held.shape and float((held - other).norm() / other.norm().clamp_min(1e-30)) < _ALIKE:
            yield sentence
