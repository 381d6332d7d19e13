"""Scales and zero points of a half-quadratic solve: arithmetic/searching.py tells how and from where.

It has no kernel: powers and sums are torch's own, and its bytes those of one torch on one kind of processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mtpforge.formats.format import Finder, Format
from mtpforge.methods.method import Method, Parts
from mtpforge.tensors import Quantization

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.judging import Judged

_POWER: Final = 0.7  # of the error that it counts


def finder(_factor: Tensor | None) -> Finder:
    """A solve for each group, on the CPU wherever the weights are; then the nearest codes."""
    from mtpforge.arithmetic import searching

    return searching.nearest(searching.hqq)


def judge(parts: Parts, form: Format, quantization: Quantization, reference: Tensor, values: Tensor) -> Judged:
    """Nearest codes under any scale that leaves no more than rtn's would, in the error that hqq counts."""
    from mtpforge.arithmetic import judging

    return judging.searched(form, parts, quantization, reference, values, _POWER)


METHOD: Final = Method(
    name="hqq",
    finder=finder,
    kernel=lambda _: None,
    judge=judge,
    judge_rows=None,
    finds="scale",
    how="searched",
    may_leave="what a search by hqq could leave",
)
