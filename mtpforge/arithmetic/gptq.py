"""GPTQ: codes under given scales, each column's rounding error made up for by the columns after it.

    H                 X^T X of the inputs that the weight sees, float32 [in, in], in any unit
    factor(H)         U, upper triangular: U^T U = (H + 0.01 mean(diag H) I)^-1
    for column i      code = nearest to the weight as it is by now; error = (weight - value) / U[i, i]
                      every later column j: weight -= error * U[i, j]

within blocks of 128 columns one by one, to the columns after a block in one product. Scales and zero points are
round-to-nearest's, of the weights as they were: only codes differ. Rows do not touch each other.

Source: Frantar et al. 2023 (arXiv 2210.17323) as llm-compressor 0.14.0.1 has it (modifiers/gptq/gptq_quantize.py and
helpers.py: block 128, dampening 0.01, no reordering of columns), whose codes these are, but for dead columns: inputs
that were zero on every token. There it sets the weights to 0; here they keep their nearest codes, for what calibration
did not show is not known to be useless. The products add in an order of the processor's own, so where a weight lies at
a tie within float32's rounding, one machine's code may differ from another's.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from mtpforge.arithmetic import affine

DAMPENING: Final = 0.01
BLOCK: Final = 128

# Nothing bounds how far errors that were propagated lead a weight, and who reads a draft without its inputs (verify)
# needs bounds. In rows of normal weights, H from flat to the fifth power, they are never reached; beside an outlier of
# 20 standard deviations, whose group has large errors to propagate, they are.
FARTHEST: Final = 1 / 2  # of the range of codes, between a weight and its value
MOST_OF_GROUP: Final = 1 / 8  # of the range, root of the mean square of these in a group
MOST_OF_RTN: Final = 4.0  # squared error of a row, in that of its nearest codes


def factor(hessian: Tensor) -> Tensor | None:
    """U, float32 [in, in]; None where H is not positive definite in float32 although dampened.

    hessian: float32 [in, in], symmetric; it is overwritten.
    """
    diagonal = hessian.diagonal()
    diagonal.masked_fill_(diagonal == 0, 1.0)
    diagonal.add_(DAMPENING * diagonal.mean())
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed):
        return None
    torch.cholesky_inverse(lower, out=hessian)
    del lower
    upper, failed = torch.linalg.cholesky_ex(hessian, upper=True)
    return None if int(failed) else upper


def codes(weight: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, upper: Tensor | None) -> Tensor:
    """Codes, uint8 [rows, groups, size]: 2^(b-1) added, as affine.quantize gives them.

    weight: float32 [rows, groups, size]; scale float32 and zero_point uint8 [rows, groups]; upper: `factor` of its
    inputs, None for the nearest codes. Rows that are led too far from their weights keep those: see FARTHEST.
    """
    nearest = affine.quantize(weight, scale, zero_point, bits)
    if upper is None:
        return nearest
    found = _propagated(weight, scale, zero_point, bits, upper)
    off, least = (affine.dequantize(each, scale, zero_point, bits).sub_(weight) for each in (found, nearest))
    far = off.square().sum((1, 2)) > least.square_().sum((1, 2)).mul_(MOST_OF_RTN)
    off.div_(scale.unsqueeze(-1) * 2**bits)
    far |= (off.abs().amax((1, 2)) > FARTHEST) | (off.square_().mean(-1).amax(1) > MOST_OF_GROUP**2)
    return torch.where(far[:, None, None], nearest, found)


def _propagated(weight: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, upper: Tensor) -> Tensor:
    half, size = 2 ** (bits - 1), weight.shape[-1]
    work = weight.flatten(1).t().contiguous()  # a column of the weight in one piece
    scales = scale.t().contiguous()
    zeros = torch.zeros_like(scales) if zero_point is None else zero_point.t().float() - half
    found = torch.empty(work.shape, dtype=torch.uint8)
    for first in range(0, len(work), BLOCK):
        last = min(first + BLOCK, len(work))
        errors = torch.empty(last - first, work.shape[1])
        for column in range(first, last):
            own, group = work[column], column // size
            code = (own / scales[group]).add_(zeros[group]).clamp_(-half, half - 1).round_()
            found[column] = code + half
            error = own - code.sub_(zeros[group]).mul_(scales[group])
            errors[column - first] = error.div_(upper[column, column])
            work[column + 1 : last] -= upper[column, column + 1 : last, None] * error
        work[last:] -= upper[first:last, last:].t() @ errors
    return found.t().reshape(weight.shape)
