"""Groups of a draft without a manifest whose error stands out: a scale that was damaged, within what its format allows.

A format's bound is for any weights under any scale, so a block scale off by an eighth stays within it. But a draft that
was rounded to nearest leaves in each group just what rounding to nearest leaves, and then a group that does not is
damaged. Of codes that were searched, fitted or made from other weights nothing is known, so nothing is said: only where
all but a hundredth of a matrix's groups are as near as round-to-nearest's are the rest held to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from mtpforge.formats.format import Format
from mtpforge.tensors import Quantization

_AS_NEAREST: Final = 1.02  # squared error over rtn's: float32 and another order of operations stay within
_NEARLY_ALL: Final = 0.99
# A scale off by an eighth leaves 2.7 (NVFP4) to 3.7 (INT4) times rtn's squared error in a median group.
_STANDS_OUT: Final = 1.5
_COUNTS: Final = 1e-2  # of the median group's norm: below it scales have no steps left, and nobody hears the difference
_NOTHING: Final = 1e-10  # of a group's squared norm: float32's own rounding


class Groups:
    """The groups of one matrix, gathered over its bands."""

    def __init__(self, form: Format, quantization: Quantization) -> None:
        self.form, self.quantization = form, quantization
        self.ratios: list[Tensor] = []
        self.norms: list[Tensor] = []

    @staticmethod
    def judge(form: Format, quantization: Quantization) -> bool:
        """Whether its groups can be told: few bits, a scale for each group of columns, and an encoder."""
        return quantization.strategy == "group" and not quantization.is_dense and form.encode is not None

    def add(self, parts: Mapping[str, Tensor], reference: Tensor, difference: Tensor) -> None:
        """A band: its parts, the source's weights and how far the draft's are from them, float32 [rows, in] both."""
        assert self.form.encode is not None  # noqa: S101 -- `judge` asked
        shape = (reference.shape[0], reference.shape[1])
        nearest = {**parts, **self.form.encode(reference, self.quantization, parts)}
        plain = self.form.decode(nearest, shape, self.quantization).sub_(reference)
        groups = (shape[0], -1, self.quantization.group_size or 1)
        ours, theirs, norm = (each.view(groups).square().sum(-1) for each in (difference, plain, reference))
        least = norm * _NOTHING + torch.finfo(torch.float32).tiny
        self.ratios.append((ours + least) / (theirs + least))
        self.norms.append(norm)

    def finding(self) -> str:
        """How many groups stand out, and the first of them; "" where none does, or nothing can be told."""
        ratios, norms = torch.cat(self.ratios), torch.cat(self.norms)
        if float((ratios <= _AS_NEAREST).float().mean()) < _NEARLY_ALL:
            return ""
        out = (ratios > _STANDS_OUT) & (norms > norms.median() * _COUNTS**2)
        places = out.nonzero()
        if not len(places):
            return ""
        row, group = (int(i) for i in places[0])
        size = self.quantization.group_size or 1
        return (
            f"{len(places)} of {ratios.numel()} groups are further from the source than rounding leaves them:"
            f" [{row}, {group * size}:{(group + 1) * size}] by {float(ratios[row, group]) ** 0.5:.2g} times"
        )
