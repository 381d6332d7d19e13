"""Codes that no manifest vouches for: whoever found them, held to what all but a hundredth of their matrix follow.

Nobody says how a draft of another tool was made. But what every tool makes follows a law, group by group:

    close        as close as the nearest codes of its own scale     rtn, and every search for scales
    same scale   scale and zero point are rtn's                     rtn, and codes fitted to inputs under them

Laws that nearly all groups follow are their maker's: a group that breaks all of these, and is further from the source
than all others, was damaged, and is told. Codes too far for the nearest fail, unless many matrices of the draft hold
some: then they were fitted, and are held to what a fit may leave (arithmetic/judging.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from mtpforge.arithmetic import gptq, judging
from mtpforge.formats.format import Format
from mtpforge.tensors import Quantization

if TYPE_CHECKING:
    from mtpforge.weights import Band
    from mtpforge.weights.kernels import RowKernels

_NEARLY_ALL: Final = 0.99
_COUNTS: Final = 1e-2  # of the root mean square of all groups: below it scales have no steps left, and nobody hears it


class Unclaimed:
    """The groups of one matrix, gathered over its bands."""

    def __init__(self, form: Format, quantization: Quantization) -> None:
        self.form, self.quantization = form, quantization
        self.n_usual, self.squares = 0, 0.0
        self.bands: list[tuple[int, judging.Groups]] = []

    @staticmethod
    def serves(form: Format, quantization: Quantization) -> bool:
        """Whether groups can be told: integers or FP4 under scales of groups or rows, and an encoder."""
        least, largest = form.codes.ends(quantization) if form.codes else (0, 0)
        return least != largest and form.encode is not None and quantization.strategy in {"group", "channel"}

    def usual(self, kernels: RowKernels, ours: Band, theirs: Band) -> tuple[float, float, float] | None:
        """Add a band all of whose groups are close, by compiled kernels: its sums; None where one may not be."""
        packing = self.form.row_packing and self.form.row_packing(ours.shape[1], self.quantization, ours.parts)
        allowed = self.form.bound(ours.parts, self.quantization, ours.shape)
        sums = kernels.judge(ours, theirs, judging.limits_of_groups(self.quantization))
        if sums is None and packing:
            more = judging.arithmetic(self.quantization), gptq.MOST_OF_RTN
            sums = kernels.judge_blocks(ours, theirs, packing, allowed.absolute, more)
        if sums is not None:
            self.n_usual += ours.shape[0] * allowed.absolute.shape[1]
            self.squares += sums[1]
        return sums

    def add(self, first: int, parts: Mapping[str, Tensor], reference: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """A band from row `first` on; `reference`, `values`: float32 [rows, in].

        Bool [rows, in]: weights that are wrong if codes are the nearest, and weights that are wrong in any case.
        """
        found, other, far = judging.groups(self.form, parts, self.quantization, reference, values)
        self.squares += float(found.norm.sum())
        self.bands.append((first, found))
        return other | far, far

    @property
    def has_strays(self) -> bool:
        """Whether it holds codes too far for the nearest."""
        return any(not bool(found.nearest.all()) for _, found in self.bands)

    def finding(self) -> str:
        """How many groups stand out, and the first of them; "" where none does, or nothing can be told."""
        laws = [law for law in ("close", "same_scale") if self.bands and self._share(law) >= _NEARLY_ALL]
        if not laws:
            return ""
        ratio, norm = self._all("ratio"), self._all("norm")
        follows = torch.stack([self._all(law) for law in laws]).any(0)
        counts = norm > self.squares / (self.n_usual + norm.numel()) * _COUNTS**2
        places = (~follows & counts & (ratio > self._most(ratio))).nonzero().flatten()
        if not len(places):
            return ""
        n_groups, size = self.bands[0][1].ratio.shape[1], self.quantization.group_size or 0
        row, group = divmod(int(places[0]), n_groups)
        rows = torch.cat([first + torch.arange(len(found.ratio)) for first, found in self.bands])
        columns = f"{group * size}:{(group + 1) * size}" if size else ":"
        return (
            f"{len(places)} of {self.n_usual + ratio.numel()} groups are further from the source than all others:"
            f" [{int(rows[row])}, {columns}] by {float(ratio[places[0]]) ** 0.5:.2g} times what rounding leaves"
        )

    def _most(self, ratio: Tensor) -> float:
        """How many times rtn's squared error is nothing odd: what all but a hundredth have, or BF16 arithmetic adds."""
        rank = math.ceil(_NEARLY_ALL * (self.n_usual + ratio.numel())) - self.n_usual
        others = float(ratio.kthvalue(rank).values) if rank > 0 else 0.0
        return max(others, judging.arithmetic(self.quantization))

    def _share(self, law: str) -> float:
        follows = self._all(law)
        return (self.n_usual + int(follows.sum())) / (self.n_usual + follows.numel())

    def _all(self, name: str) -> Tensor:
        return torch.cat([getattr(found, name).flatten() for _, found in self.bands])
