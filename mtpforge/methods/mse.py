"""Scales under which the squared error of a group is least: arithmetic/searching.py tells how and from where."""

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

_KERNELS: Final = {"affine": "affine_mse"}  # by whose packing they make
_POWER: Final = 2.0


def finder(_factor: Tensor | None) -> Finder:
    """Ranges shrunk about their zero point, the best of them, then the nearest codes."""
    from mtpforge.arithmetic import searching

    return searching.nearest(searching.mse)


def judge(parts: Parts, form: Format, quantization: Quantization, reference: Tensor, values: Tensor) -> Judged:
    """Nearest codes under any scale that leaves no more than rtn's would."""
    from mtpforge.arithmetic import judging

    return judging.searched(form, parts, quantization, reference, values, _POWER)


def judge_rows(kernels: RowKernels, ours: Band, theirs: Band, _form: Format) -> Sums | None:
    """The same."""
    from mtpforge.arithmetic import judging

    return kernels.judge(ours, theirs, judging.LIMITS)


METHOD: Final = Method(
    name="mse",
    finder=finder,
    kernel=_KERNELS.get,
    judge=judge,
    judge_rows=judge_rows,
    finds="scale",
    how="searched",
    may_leave="what a search by mse could leave",
)
