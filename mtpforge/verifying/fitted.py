"""Codes that gptq fitted to inputs, judged without these: they follow from the weights no longer, but stay near them.

- Scales and zero points are round-to-nearest's for the source's weights, exactly: gptq chooses codes alone.
- No weight is further than half the range of codes from the source's, brought into the range of its group; the root of
  the mean square in a group is at most an eighth of the range.
- The squared error of a row is at most 4 times what round-to-nearest would leave.

A build keeps to these bounds itself: rows that would not are rounded to nearest (arithmetic/gptq.py). What passes is a
wrong code here and there, no further off than the fit may have put it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from mtpforge.families.family import Module
from mtpforge.formats import FORMATS
from mtpforge.tensors import Quantization, ScaleMethod
from mtpforge.verifying.bounds import SLACK, Parts
from mtpforge.verifying.searched import TINY, Judged, ends

_FITTED: Final = frozenset({"routed experts", "shared experts"})  # kinds of modules whose inputs a build knows
_FARTHEST, _OF_GROUP, _OF_RTN = 1 / 2, 1 / 8, 4.0
_MORE: Final = 1 + 1e-3  # float32 counted


def method_of(module: Module, claimed: ScaleMethod) -> ScaleMethod:
    """How the codes of a module are found in a draft that claims a method: gptq is for experts alone."""
    return "rtn" if claimed == "gptq" and module.kind not in _FITTED else claimed


def judge(parts: Parts, quantization: Quantization, reference: Tensor, values: Tensor) -> Judged:
    """A band of the draft, decoded to `values`, beside the source's weights: float32 [rows, in] both."""
    form, shape = FORMATS[quantization.format], (values.shape[0], values.shape[1])
    assert form.encode is not None  # noqa: S101 -- what can be fitted can be written
    nearest = {**parts, **form.encode(reference, quantization, parts)}
    low, high = ends(parts, quantization, shape)
    low_of_rtn, high_of_rtn = ends(nearest, quantization, shape)
    beyond = (low != low_of_rtn) | (high != high_of_rtn)  # equal ends: equal scale and zero point
    scale = parts["weight_scale"].float()
    inside = torch.maximum(torch.minimum(reference, high), low)
    off = (values - inside).abs_().view(*scale.shape, -1).div_(scale.unsqueeze(-1) * 2**quantization.bits)
    far = ~(off <= _FARTHEST + SLACK) | ~(off.square().mean(-1) <= _OF_GROUP**2 * _MORE).unsqueeze(-1)
    plain = form.decode(nearest, shape, quantization).sub_(reference)
    ours, theirs = (each.square().sum(1) for each in (values - reference, plain))
    allowed = theirs * (_OF_RTN * _MORE) + (scale * TINY).square().sum(1) * off.shape[-1]
    worse = ~(ours <= allowed)
    return Judged(beyond | far.view(shape) | worse.unsqueeze(-1), float(torch.linalg.vector_norm(plain)) ** 2)
