"""Codes fitted to calibration inputs under rtn's scales: arithmetic/gptq.py tells how and from where.

For experts alone, whose inputs the layer's own forward pass gives (mtpforge.nextn). Its products add in an order of the
device's own, so it runs on the CPU and has no kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mtpforge.formats.format import Finder, Format
from mtpforge.methods.method import Method, Parts
from mtpforge.tensors import Quantization

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.judging import Judged


def finder(factor: Tensor | None) -> Finder:
    """Rtn's scales; codes that make up for each other's errors on the inputs, nearest ones without a factor."""
    from mtpforge.arithmetic import gptq, searching

    return searching.nearest(
        searching.whole_range,
        codes=lambda weight, scale, zero_point, bits: gptq.codes(weight, scale, zero_point, bits, factor),
    )


def judge(parts: Parts, form: Format, quantization: Quantization, reference: Tensor, values: Tensor) -> Judged:
    """Rtn's scales exactly, and codes no further away than a build lets the fit lead them."""
    from mtpforge.arithmetic import judging

    return judging.fitted(form, parts, quantization, reference, values)


METHOD: Final = Method(
    name="gptq",
    finder=finder,
    kernel=lambda _: None,
    judge=judge,
    judge_rows=None,
    needs_inputs=True,
    kinds=frozenset({"routed experts", "shared experts"}),
    bytes_per_weight=32,
    factors=3,
    finds="code",
    how="fitted to inputs",
    may_leave="what a search by gptq could leave",
)
