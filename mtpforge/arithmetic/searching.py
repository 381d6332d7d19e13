"""Scales and zero points found by more than the range of a group; the codes follow from them as ever.

    rtn    the whole range, then round to nearest: affine.qparams
    mse    the range shrunk by each of SHRINKS about its zero point, where that has the least sum of squared errors
    hqq    scale and zero point of a half-quadratic solve, where they have a smaller sum of |error|^LP

A group keeps its rtn numbers where the search finds nothing better, so no group gets worse in the error that its method
counts. Errors are counted in float32, against the scale as it is stored, in one order of additions that the compiled
kernel (search_kernels.py) shares: which of two candidates wins must not depend on the machine. Only hqq has powers and
sums of torch's own: its bytes are those of one torch on one kind of processor, so it runs on the CPU wherever the
weights are.

Sources. mse: llm-compressor 0.14.0.1, observers/mse.py: maxshrink 0.20 and grid 100 make these 20 factors. It counts
|error|^2.4 and stops after 5 factors without any gain; here squares are counted, which is what a relative error is made
of, and every factor is tried. hqq: Badri and Shaji 2023, mobiusml/hqq, core/optimize.py, optimize_weights_proximal:
lp_norm 0.7, beta 10, kappa 1.01, 20 iterations. It solves for the zero point alone and keeps it as a float. These
formats have integers there: rounded, the solution is nearly always the one before. So here the same solve goes for the
scale as well, by its closed form, and the zero point is rounded at the end. It counts errors in units of the weights,
here of the rtn scale: its threshold, made for weights of about 1, is larger than any error of a trained layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import torch
from torch import Tensor

from mtpforge.arithmetic import affine, scales

Qparams: TypeAlias = tuple[Tensor, Tensor | None]
Found: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
Search: TypeAlias = Callable[[Tensor, int, torch.dtype, bool], Qparams]
Codes: TypeAlias = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]

SHRINKS: Final = tuple(1 - i / 100 for i in range(20))
LANES: Final = 32  # numbers are added up by so many, these sums in order: the kernel's order
LP: Final = 0.7
_BETA, _KAPPA, _ITERATIONS = 10.0, 1.01, 20
_BLOCK: Final = 1 << 18  # weights searched at a time on a CPU: their temporaries stay in the caches


def nearest(search: Search, codes: Codes = affine.quantize) -> Callable[[Tensor, int, torch.dtype, bool], Found]:
    """What finds codes (uint8, 2^(b-1) added), scale and zero point of weights float32 [rows, groups, size], finite.

    search: of scale and zero point, as affine.qparams gives them; codes: under these, the nearest if nothing is said.
    """

    def find(weight: Tensor, bits: int, dtype: torch.dtype, symmetric: bool) -> Found:
        scale, zero_point = search(weight, bits, dtype, symmetric)
        return codes(weight, scale, zero_point, bits), scale, zero_point

    return find


def whole_range(weight: Tensor, bits: int, dtype: torch.dtype, symmetric: bool) -> Qparams:
    """The range of every group: rtn, and gptq, which finds codes under these scales (gptq.py)."""
    return affine.qparams(weight, bits, dtype, symmetric=symmetric)


def mse(weight: Tensor, bits: int, dtype: torch.dtype, symmetric: bool) -> Qparams:
    """Scales of the least squared error, on whatever device the weights are."""
    if weight.device.type != "cpu":
        return _mse(weight, bits, dtype, symmetric)
    return _by_blocks(_mse, weight, bits, dtype, symmetric)


def hqq(weight: Tensor, bits: int, dtype: torch.dtype, symmetric: bool) -> Qparams:
    """Scales and zero points of the half-quadratic solve, found on the CPU."""
    scale, zero_point = _by_blocks(_hqq, weight.cpu(), bits, dtype, symmetric)
    return scale.to(weight.device), None if zero_point is None else zero_point.to(weight.device)


def _by_blocks(search: Search, weight: Tensor, bits: int, dtype: torch.dtype, symmetric: bool) -> Qparams:
    rows = max(_BLOCK // max(weight[:1].numel(), 1), 1)
    blocks = (weight[first : first + rows] for first in range(0, len(weight), rows))
    found = [search(block, bits, dtype, symmetric) for block in blocks]
    zeros = [zero for _, zero in found if zero is not None]
    return torch.cat([scale for scale, _ in found]), torch.cat(zeros) if zeros else None


def _mse(weight: Tensor, bits: int, dtype: torch.dtype, symmetric: bool) -> Qparams:
    exact, zero_point = affine.full_range(weight, bits, symmetric=symmetric)
    offset = None if zero_point is None else zero_point.to(torch.float32) - 2 ** (bits - 1)
    rtn, turned = scales.as_stored(exact, dtype), _turned(weight)
    best, least = rtn, squared_error(turned, rtn, rtn, offset, bits)
    for shrink in SHRINKS[1:]:
        scale = scales.as_stored(exact * torch.full((), shrink, device=exact.device), dtype)
        error = squared_error(turned, scale, rtn, offset, bits)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best, zero_point


def _turned(weight: Tensor) -> Tensor:
    """[rows, groups, size] -> [LANES, rows, groups, ceil(size / LANES)], filled up with zeros: they have no error."""
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[-1] % LANES))
    return padded.view(*weight.shape[:2], -1, LANES).movedim(-1, 0).contiguous()


def squared_error(turned: Tensor, scale: Tensor, unit: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    """Sum of the squared errors of every group, in squares of its `unit`, float32 [rows, groups].

    turned: weights [LANES, rows, groups, chunks]; scale, unit, offset (signed zero point): float32 [rows, groups].
    The quotient is a product with 1 / scale: off by an ulp from that of the codes, it counts as much.
    """
    half = 2 ** (bits - 1)
    quotient = turned * (1 / scale).unsqueeze(-1)
    if offset is not None:
        quotient += offset.unsqueeze(-1)
    quotient -= quotient.clamp(-half, half - 1).round_()
    ratio = scale / unit
    return _in_order(_in_order(quotient.square_()).movedim(-1, 0)) * ratio * ratio


def _in_order(parts: Tensor) -> Tensor:
    """Sum over the leading axis, first to last; torch.sum has an order of its own."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _hqq(weight: Tensor, bits: int, dtype: torch.dtype, symmetric: bool) -> Qparams:
    exact, start = affine.full_range(weight, bits, symmetric=symmetric)
    half, beta = 2 ** (bits - 1), _BETA
    rtn = scales.as_stored(exact, dtype)
    unit = weight / rtn.unsqueeze(-1)
    first = torch.zeros_like(rtn) if start is None else start.to(torch.float32).sub_(half)
    scale, zero = torch.ones_like(rtn).unsqueeze(-1), first.unsqueeze(-1)
    for _ in range(_ITERATIONS):
        codes = (unit / scale + zero).clamp_(-half, half - 1).round_()
        steps = codes - zero
        kept = unit - _shrunk(unit - steps * scale, beta)
        scale = ((steps * kept).sum(-1, keepdim=True) / steps.square().sum(-1, keepdim=True)).nan_to_num_(1.0)
        scale.clamp_(0.5, 2.0)
        if start is not None:
            zero = (codes - kept / scale).mean(-1, keepdim=True)
        beta *= _KAPPA
    solved = scales.as_stored(rtn * scale.squeeze(-1), dtype)
    offset = zero.squeeze(-1).round().clamp_(-half, half - 1)
    better = lp_error(weight, solved, offset, bits) < lp_error(weight, rtn, first, bits)
    found = torch.where(better, offset, first).add_(half).to(torch.uint8)
    return torch.where(better, solved, rtn), None if start is None else found


def _shrunk(error: Tensor, beta: float) -> Tensor:
    """Proximal step of |error|^LP: what is large stays an error of its own; the rest, scale and zero point can mend."""
    size = error.abs()
    return error.sign() * (size - size.pow(LP - 1) / beta).relu_()


def lp_error(weight: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Sum of |error|^LP of every group, float32 [rows, groups].

    weight: float32 [rows, groups, size]; scale, offset (signed zero point): float32 [rows, groups].
    """
    half = 2 ** (bits - 1)
    factor, zero = scale.unsqueeze(-1), offset.unsqueeze(-1)
    codes = (weight / factor + zero).clamp_(-half, half - 1).round_()
    return (weight - (codes - zero) * factor).abs_().pow_(LP).sum(-1)
