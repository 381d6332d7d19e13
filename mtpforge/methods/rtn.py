"""Round to nearest, under scales that cover the whole range of a group: what every format can do, and the default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mtpforge.formats.format import Finder, Format
from mtpforge.methods.method import Method, Parts, Sums
from mtpforge.tensors import Quantization

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.judging import Judged
    from mtpforge.weights import Band
    from mtpforge.weights.kernels import RowKernels

_LANES: Final = 16  # columns that the kernel compares at a time


def finder(_factor: Tensor | None) -> Finder:
    """The range of each group, then the nearest codes."""
    from mtpforge.arithmetic import searching

    return searching.nearest(searching.whole_range)


def judge(parts: Parts, form: Format, quantization: Quantization, reference: Tensor, values: Tensor) -> Judged:
    """Within the rounding of the format."""
    from mtpforge.arithmetic.judging import Judged

    limit = form.bound(parts, quantization, (values.shape[0], values.shape[1]))
    return Judged(limit.beyond(reference, (values - reference).abs_()), 0.0)


def judge_rows(kernels: RowKernels, ours: Band, theirs: Band, form: Format) -> Sums | None:
    """The same, where groups are as wide as the kernel takes them."""
    allowed = form.bound(ours.parts, ours.quantization, ours.shape)
    if ours.shape[1] // allowed.absolute.shape[1] % _LANES:
        return None
    sums = kernels.compare(ours, theirs, allowed.absolute.expand(ours.shape[0], -1), allowed.relative)
    return None if sums is None else (*sums, 0.0)


METHOD: Final = Method(
    name="rtn",
    finder=finder,
    kernel=lambda name: name,
    judge=judge,
    judge_rows=judge_rows,
    is_searched=False,
    finds="scale",
    how="rounded to nearest",
    may_leave="within the rounding of its format",
)
