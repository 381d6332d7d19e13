"""The Method record: everything that mtpforge knows about one way to find scales and codes of integers.

What a method found must be told from what it could not have found, by reading draft and source alone: so it brings its
own judge, and no method is judged by another's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from mtpforge.formats.format import Finder, Format
from mtpforge.tensors import Quantization

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.judging import Judged
    from mtpforge.weights import Band
    from mtpforge.weights.kernels import RowKernels

Parts: TypeAlias = "Mapping[str, Tensor]"
Sums: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to find the scales and codes of integers.

    finder(factor): a function of (weight float32 [rows, groups, size], bits, dtype of the stored scale, symmetric) that
        gives codes uint8 like weight with 2^(b-1) added, scale float32 [rows, groups], zero point uint8 [rows, groups]
        or None. factor: of the inputs of the weight (arithmetic/gptq.py), where the method needs inputs and has some.
    kernel(name): the compiled encoder that does the same as `finder` for rows packed as kernel `name`; None where there
        is none.
    judge(parts, form, quantization, reference, values): which weights of a band, decoded to `values` from `parts`, this
        method cannot have made of the source's `reference`, float32 [rows, in] both.
    judge_rows(kernels, ours, theirs, form): the same of two bands by a compiled kernel: sums of squares of the
        differences, of theirs, of what rtn would leave; None where a weight is beyond, or no kernel tells. A method
        without such a kernel says None.
    is_searched: whether it needs integer codes whose scales leave a choice; rtn alone serves every format.
    needs_inputs: whether it fits codes to calibration inputs.
    kinds: kinds of modules that it fits, None for all.
    bytes_per_weight: what decoding and encoding a band hold at once: float32 values, quotients and temporaries,
        measured with the eager path on every format. factors: float32 matrices [in, in] that it holds beside.
    finds, how, may_leave: words for messages: what it looks for, how, and what its judge allows.
    """

    name: str
    finder: Callable[[Tensor | None], Finder]
    kernel: Callable[[str], str | None]
    judge: Callable[[Parts, Format, Quantization, Tensor, Tensor], Judged]
    judge_rows: Callable[[RowKernels, Band, Band, Format], Sums | None] | None
    finds: str
    how: str
    may_leave: str
    is_searched: bool = True
    needs_inputs: bool = False
    kinds: frozenset[str] | None = None
    bytes_per_weight: int = 16
    factors: int = 0

    def serves(self, form: Format, kind: str) -> bool:
        """Whether it finds the codes of a kind of module in this format; where not, rtn does."""
        return (not self.is_searched or form.search is not None) and (self.kinds is None or kind in self.kinds)
