"""Codes that did not follow from rounding to nearest under the range of their group, told from those of other weights.

A shrunk range clips, so half a scale is no bound for what lies outside it. What holds instead of a search for scales,
for every draft that it could have made, and for no other weights:

- every code is the nearest that its scale and zero point have: a weight is off by half a scale at most from the
  source's, brought into the range of its group;
- no group is further from the source than round-to-nearest would leave it, in the error that the method counts.

Codes that were fitted to inputs follow from the weights no longer, but stay near them:

- scales and zero points are round-to-nearest's for the source's weights, exactly: gptq chooses codes alone;
- no weight is further than gptq.FARTHEST of the range of codes from the source's, brought into the range of its group,
  the root of the mean square in a group at most gptq.MOST_OF_GROUP of it;
- the squared error of a row is at most gptq.MOST_OF_RTN times what round-to-nearest would leave.

So a manifest that claims a method lets nothing pass but codes of the source's weights. Of a draft without one each
group is weighed by itself (`groups`), and verifying/unclaimed.py says what its matrix follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch import Tensor

from mtpforge.arithmetic import gptq
from mtpforge.arithmetic.limits import SLACK
from mtpforge.tensors import Quantization, Shape

if TYPE_CHECKING:
    from mtpforge.formats.format import Format

Parts: TypeAlias = Mapping[str, Tensor]

_MORE: Final = 1e-3  # float32 decided which of two was better, this decides whether it was
_TINY: Final = 1e-4  # of a scale: an error of nothing is float32's own rounding

# For the kernel that judges mse: far from the nearest code, worse than rtn, an error of nothing.
LIMITS: Final = (0.5 + SLACK, 1 + _MORE, _TINY)


_FEW: Final = 4  # bits, of codes that are all tried
_SAME: Final = 2.0**-7  # of the range of codes: two steps of a scale that was made in BF16
_NOTHING: Final = 1e-10  # of a group's squared norm: float32's own rounding


@dataclass(frozen=True, slots=True)
class Judged:
    """beyond: bool [rows, in], weights that the method cannot have made. rtn: squared error that rtn would leave."""

    beyond: Tensor
    rtn: float


def searched(
    form: Format, parts: Parts, quantization: Quantization, reference: Tensor, values: Tensor, power: float
) -> Judged:
    """Of a search for scales that counts |error|^power; `reference`, `values`: float32 [rows, in]."""
    plain = _rounded(form, parts, quantization, reference).sub_(reference)
    inside = _inside(form, parts, quantization, reference)
    scale = _scale(form, parts).float()
    groups = (*scale.shape, -1)
    far = ~((values - inside).abs_().view(groups) <= scale.unsqueeze(-1) * (0.5 + SLACK))
    ours = (values - reference).abs_().pow_(power).view(groups).sum(-1)
    theirs = plain.abs().pow_(power).view(groups).sum(-1)
    allowed = theirs * (1 + _MORE) + (scale * _TINY).pow_(power) * far.shape[-1]
    worse = ~(ours <= allowed)
    return Judged((far | worse.unsqueeze(-1)).view(values.shape), float(torch.linalg.vector_norm(plain)) ** 2)


def fitted(form: Format, parts: Parts, quantization: Quantization, reference: Tensor, values: Tensor) -> Judged:
    """Of codes fitted to inputs; `reference`, `values`: float32 [rows, in]."""
    nearest = {**parts, **_encoded(form, parts, quantization, reference)}
    shape = (values.shape[0], values.shape[1])
    ours, theirs = (_ends(form, held, quantization, shape) for held in (parts, nearest))
    beyond = (ours[0] != theirs[0]) | (ours[1] != theirs[1])  # equal ends: equal scale and zero point
    scale, codes = _scale(form, parts).float(), 2**quantization.bits
    off = (values - _inside(form, parts, quantization, reference)).abs_()
    off = off.view(*scale.shape, -1).div_(scale.unsqueeze(-1) * codes)
    spread = off.square().mean(-1) <= gptq.MOST_OF_GROUP**2 * (1 + _MORE)
    far = ~(off <= gptq.FARTHEST + SLACK) | ~spread.unsqueeze(-1)
    plain = form.decode(nearest, shape, quantization).sub_(reference)
    error, by_rtn = (each.square().sum(1) for each in (values - reference, plain))
    allowed = by_rtn * (gptq.MOST_OF_RTN * (1 + _MORE)) + (scale * _TINY).square().sum(1) * off.shape[-1]
    worse = ~(error <= allowed)
    return Judged(beyond | far.view(shape) | worse.unsqueeze(-1), float(torch.linalg.vector_norm(plain)) ** 2)


@dataclass(frozen=True, slots=True)
class Groups:
    """What the groups of a band follow, bool [rows, groups], whoever found their codes; and how far off they are.

    nearest: no code is too far for the nearest that its own scale has. close: all together they are as close as nearest
    codes; said of 4 bits. same_scale: scale and zero point are rtn's, or it is close; where scales are fine enough to
    tell. ratio: squared error over rtn's, norm: of the source's weights, squared, float32 both.
    """

    nearest: Tensor
    close: Tensor
    same_scale: Tensor
    ratio: Tensor
    norm: Tensor


def groups(
    form: Format, parts: Parts, quantization: Quantization, reference: Tensor, values: Tensor
) -> tuple[Groups, Tensor, Tensor]:
    """Of codes that nobody says how they were found; `reference`, `values`: float32 [rows, in].

    Then, bool [rows, in]: weights whose codes are not the nearest of their scale, and weights that no fit may leave.
    """
    shape = (values.shape[0], values.shape[1])
    nearest = {**parts, **_encoded(form, parts, quantization, reference)}
    allowed = form.bound(parts, quantization, shape)
    apart = (shape[0], allowed.absolute.shape[1], -1)
    low, high = _ends(form, parts, quantization, shape)
    off = (values - torch.maximum(torch.minimum(reference, high), low)).abs_()
    other = allowed.beyond(reference, off)
    span = (high - low).view(apart)
    plain = form.decode(nearest, shape, quantization).sub_(reference)
    own, by_rtn, norm = (each.square().view(apart).sum(-1) for each in (values - reference, plain, reference))
    least = norm * _NOTHING + torch.finfo(torch.float32).tiny
    best = _least(form, parts, quantization, reference).view(apart).sum(-1) if quantization.bits == _FEW else own
    close = own <= (best + least) * arithmetic(quantization)
    same = close
    if torch.finfo(_scale(form, parts).dtype).eps <= _SAME:
        theirs = _ends(form, nearest, quantization, shape)
        ends = [(a - b).abs_().view(apart)[..., 0] for a, b in zip((low, high), theirs, strict=True)]
        same = same | (torch.maximum(*ends) <= span[..., 0] * _SAME)
    off = off.view(apart) / (span * (2**quantization.bits / (2**quantization.bits - 1)))
    spread = off.square().mean(-1, keepdim=True) <= gptq.MOST_OF_GROUP**2 * (1 + _MORE)
    worse = own.sum(1) > (by_rtn + least).sum(1) * (gptq.MOST_OF_RTN * (1 + _MORE))
    far = (~((off <= gptq.FARTHEST + SLACK) & spread)).view(shape) | worse.unsqueeze(-1)
    alike = ~other.view(apart).any(-1)
    return Groups(alike, close, same, (own + least) / (by_rtn + least), norm), other, far


def arithmetic(quantization: Quantization) -> float:
    """What dividing in BF16 may multiply the squared error of nearest codes by: it takes the farther of two.

    Of 8 bits, whichever that is.
    """
    nearer, farther = 0.5 - _off(quantization), 0.5 + _off(quantization)
    return (farther / nearer) ** 2 if nearer > 0 else float("inf")


def limits_of_groups(quantization: Quantization) -> tuple[float, float, float]:
    """For the kernel that judges mse: no group, whoever found it, breaks what `groups` tells."""
    return (0.5 + _off(quantization), gptq.MOST_OF_RTN, _TINY)


def _off(quantization: Quantization) -> float:
    """How far off BF16 is in a quotient: 2^-9 of it, in codes."""
    return 2.0 ** (quantization.bits - quantization.symmetric - 9)


def _least(form: Format, parts: Parts, quantization: Quantization, reference: Tensor) -> Tensor:
    """Squared error of the nearest of all 16 codes under these scales, float32 [rows, in]; codes are packed nibbles."""
    if form.codes is None:
        raise AssertionError(f"{form.name} has no codes")
    suffix, shape = form.codes.suffix, (reference.shape[0], reference.shape[1])
    least = torch.full_like(reference, torch.inf)
    for code in range(16):
        every = torch.full_like(parts[suffix].view(torch.uint8), code * 0x11).view(parts[suffix].dtype)
        values = form.decode({**parts, suffix: every}, shape, quantization)
        torch.minimum(least, values.sub_(reference).square_(), out=least)
    return least


def _inside(form: Format, parts: Parts, quantization: Quantization, reference: Tensor) -> Tensor:
    """The source's weights, brought into the range that their group's codes have."""
    low, high = _ends(form, parts, quantization, (reference.shape[0], reference.shape[1]))
    return torch.maximum(torch.minimum(reference, high), low)


def _ends(form: Format, parts: Parts, quantization: Quantization, shape: Shape) -> tuple[Tensor, Tensor]:
    """What the least and the largest code mean in every place, float32 [rows, in] both."""
    if form.codes is None:
        raise AssertionError(f"{form.name} has no codes")
    suffix = form.codes.suffix
    ends = ({**parts, suffix: torch.full_like(parts[suffix], end)} for end in form.codes.ends(quantization))
    low, high = (form.decode(held, shape, quantization) for held in ends)
    return low, high


def _scale(form: Format, parts: Parts) -> Tensor:
    """Scales of the groups, as stored, [rows, groups]."""
    if form.codes is None:
        raise AssertionError(f"{form.name} has no codes")
    return form.codes.scale(parts)


def _rounded(form: Format, parts: Parts, quantization: Quantization, reference: Tensor) -> Tensor:
    encoded = _encoded(form, parts, quantization, reference)
    return form.decode(encoded, (reference.shape[0], reference.shape[1]), quantization)


def _encoded(form: Format, parts: Parts, quantization: Quantization, reference: Tensor) -> dict[str, Tensor]:
    if form.encode is None:
        raise AssertionError(f"{form.name} is only read")  # what was searched was written
    return form.encode(reference, quantization, parts)
