"""Codes whose scales were searched: a shrunk range clips, so half a scale is no bound for what lies outside it.

What holds instead, for every draft that a method of arithmetic/searching.py could have made, and for no other weights:

- every code is the nearest that its scale and zero point have: a weight is off by half a scale at most from the
  source's, brought into the range of its group;
- no group is further from the source than round-to-nearest would leave it, in the error that the method counts.

So a manifest that claims a search lets nothing pass but codes of the source's weights, at least as near as rtn's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mtpforge.formats import FORMATS
from mtpforge.tensors import Quantization, ScaleMethod, Shape
from mtpforge.verifying.bounds import SLACK, Parts

# Format -> the part that holds the codes, and what it is where all of them are the least, the largest.
_ENDS: Final = {"pack_quantized": ("weight_packed", 0, -1), "int_quantized": ("weight", -128, 127)}
_POWER: Final[dict[ScaleMethod, float]] = {"mse": 2.0, "hqq": 0.7}
_MORE: Final = 1e-3  # float32 decided which of two was better, this decides whether it was
TINY: Final = 1e-4  # of a scale: an error of nothing is float32's own rounding


# For the kernel that judges mse: far from the nearest code, worse than rtn, an error of nothing.
LIMITS: Final = (0.5 + SLACK, 1 + _MORE, TINY)


@dataclass(frozen=True, slots=True)
class Judged:
    """beyond: bool [rows, in], weights that no search could have made. rtn: squared error that rtn would leave."""

    beyond: Tensor
    rtn: float


def applies(method: ScaleMethod, quantization: Quantization) -> bool:
    """Whether codes of this quantization may come from a search by `method`."""
    return method != "rtn" and FORMATS[quantization.format].search is not None


def ends(parts: Parts, quantization: Quantization, shape: Shape) -> tuple[Tensor, Tensor]:
    """What the least and the largest code mean in every place, float32 [rows, in] both."""
    codes, least, most = _ENDS[quantization.format]
    decode = FORMATS[quantization.format].decode
    low, high = (
        decode({**parts, codes: torch.full_like(parts[codes], end)}, shape, quantization) for end in (least, most)
    )
    return low, high


def judge(parts: Parts, quantization: Quantization, reference: Tensor, values: Tensor, method: ScaleMethod) -> Judged:
    """A band of the draft, decoded to `values`, beside the source's weights: float32 [rows, in] both."""
    form, shape = FORMATS[quantization.format], (values.shape[0], values.shape[1])
    assert form.encode is not None  # noqa: S101 -- what can be searched can be written
    low, high = ends(parts, quantization, shape)
    scale = parts["weight_scale"].float()
    groups = (*scale.shape, -1)
    inside = torch.maximum(torch.minimum(reference, high), low)
    far = ~((values - inside).abs_().view(groups) <= scale.unsqueeze(-1) * (0.5 + SLACK))
    plain = form.decode(form.encode(reference, quantization, parts), shape, quantization).sub_(reference)
    power = _POWER[method]
    ours = (values - reference).abs_().pow_(power).view(groups).sum(-1)
    theirs = plain.abs().pow_(power).view(groups).sum(-1)
    allowed = theirs * (1 + _MORE) + (scale * TINY).pow_(power) * far.shape[-1]
    worse = ~(ours <= allowed)
    return Judged((far | worse.unsqueeze(-1)).view(shape), float(torch.linalg.vector_norm(plain)) ** 2)
