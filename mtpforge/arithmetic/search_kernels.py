"""Row kernels that search scales, in the Python that numba compiles; searching.py says what is searched, and in torch.

The same candidates, the same errors and the same order of additions as there, so that the same one wins, bit for bit.
What makes the loop fast: the row is turned, [32, columns / 32], so that the inner loop runs over chunks of 32 columns,
which have a scale and an error each; nothing is added across, and nothing is spread out. It takes about five times as
long as the plain encoder, a build about three times.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from mtpforge.arithmetic.decoding_kernels import F32, Bytes, Row
from mtpforge.arithmetic.encoding_kernels import full_range, group_range, pack_rounded, round_quotients, store_bf16

_LANES: Final = 32
_ROUND: Final = F32(12582912.0)  # see encoding_kernels.py
_SHRINKS: Final = np.array([1 - i / 100 for i in range(20)], F32)

_inner: Any = numba.njit(nogil=True, error_model="numpy")
_inline: Any = numba.njit(nogil=True, error_model="numpy", inline="always")


@_inner
def turn(row: Row, turned: Row) -> None:
    """turned[j, c] = row[c, j], of chunks c of 32 columns."""
    n = len(row) // _LANES
    chunks, lanes = row.reshape(n, _LANES), turned.reshape(_LANES, n)
    for c in range(n):
        for j in range(_LANES):
            lanes[j, c] = chunks[c, j]


@numba.njit(nogil=True, error_model="numpy", inline="always")
def squared_rest(quotient: np.float32, least: float, most: np.float32) -> np.float32:
    """What the nearest code of a quotient leaves, squared."""
    nearest = quotient if quotient > least else least
    nearest = nearest if nearest < most else most
    difference = quotient - ((nearest + _ROUND) - _ROUND)
    return difference * difference


@_inner
def squared_errors(turned: Row, inverse: Row, offset: Row, half: float, error: Row) -> None:
    """Sum of the squared errors of every chunk in units of its scale, added column by column."""
    n, least, most = len(error), -half, half - F32(1)
    lanes = turned.reshape(_LANES, n)
    error[:] = F32(0)
    for j in range(0, _LANES, 4):  # four at a time: scales and errors are loaded once for them
        first, second, third, fourth = lanes[j], lanes[j + 1], lanes[j + 2], lanes[j + 3]
        for c in range(n):
            factor, zero, total = inverse[c], offset[c], error[c]
            total += squared_rest(first[c] * factor + zero, least, most)
            total += squared_rest(second[c] * factor + zero, least, most)
            total += squared_rest(third[c] * factor + zero, least, most)
            error[c] = total + squared_rest(fourth[c] * factor + zero, least, most)


@_inner
def group_errors(turned: Row, scale: Row, unit: Row, zero: Row, half: float, chunks: Row, error: Row) -> None:
    """Sum of the squared errors of every group in squares of its unit, its chunks in order. chunks: scratch [3 n]."""
    n_groups, n = len(error), len(turned) // _LANES
    inverse, offset, parts, each = chunks[:n], chunks[n : 2 * n], chunks[2 * n : 3 * n], n // n_groups
    for g in range(n_groups):
        reciprocal = F32(1) / scale[g]
        for c in range(g * each, g * each + each):
            inverse[c], offset[c] = reciprocal, zero[g]
    squared_errors(turned, inverse, offset, half, parts)
    for g in range(n_groups):
        total = parts[g * each]
        for c in range(g * each + 1, g * each + each):
            total += parts[c]
        ratio = scale[g] / unit[g]
        error[g] = total * ratio * ratio


def encode_affine_mse(row: Row, numbers: Row, size: int, codes: Bytes, scales: Bytes, zeros: Bytes, work: Row) -> None:
    """Integers under the BF16 scales of least squared error; numbers, zeros: as encoding_kernels.encode_affine."""
    half = F32(128) if numbers[0] == 8 else F32(8)
    n, turned, rest = len(row) // size, work[1][: len(row)], work[0][: len(row)]
    zero, exact, best, scale = rest[:n], rest[n : 2 * n], rest[2 * n : 3 * n], rest[3 * n : 4 * n]
    least, error, rtn, chunks = rest[4 * n : 5 * n], rest[5 * n : 6 * n], rest[6 * n : 7 * n], rest[7 * n :]
    group_range(row, size, zero, exact, turned)
    full_range(zero, exact, n, half, zeros)
    turn(row, turned)
    rtn[:] = exact
    store_bf16(rtn, n, scales)
    best[:] = rtn
    group_errors(turned, rtn, rtn, zero, half, chunks, least)
    for k in range(1, len(_SHRINKS)):
        for g in range(n):
            scale[g] = exact[g] * _SHRINKS[k]
        store_bf16(scale, n, scales)
        group_errors(turned, scale, rtn, zero, half, chunks, error)
        for g in range(n):
            if error[g] < least[g]:
                least[g], best[g] = error[g], scale[g]
    store_bf16(best, n, scales)
    round_quotients(row, size, best, zero, half)
    pack_rounded(row, numbers[0], codes)


@_inner
def as_rtn(row: Row, size: int, bits: float, symmetric: bool, rtn: Row, scratch: Row, stored: Bytes) -> None:
    """`rtn` becomes what round-to-nearest makes of a row. scratch: [2, groups]; stored: [3 * groups] bytes."""
    half, n = F32(128) if bits == 8 else F32(8), len(row) // size
    zero, scale = scratch[:n], scratch[n : 2 * n]
    group_range(row, size, zero, scale, rtn)
    full_range(zero, scale, n, half, stored[2 * n : 2 * n] if symmetric else stored[2 * n : 3 * n])
    store_bf16(scale, n, stored[: 2 * n])
    rtn[:] = row
    round_quotients(rtn, size, scale, zero, half)
    blocks, each = rtn.reshape(len(row) // _LANES, _LANES), size // _LANES
    for g in range(n):
        factor, offset = scale[g], zero[g]
        for k in range(g * each, g * each + each):
            for j in range(_LANES):
                blocks[k, j] = ((blocks[k, j] - _ROUND) - offset) * factor


@numba.njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc", "contract"})
def judge(
    ours: Row, theirs: Row, rtn: Row, factors: Row, bits: float, limits: Row
) -> tuple[np.float32, np.float32, np.float32, int]:
    """Sums of squares: of our differences, of theirs, of rtn's; and how many groups no search could have made.

    factors: our scales, then our unsigned zero points. limits, in scales: how far a weight may be off from theirs,
    brought into the range of its group; then a plain factor, of what rtn's error of a group may be exceeded by; then
    the error of a weight that counts as none. Sums may be taken in any order.
    """
    n, last = len(factors) // 2, F32(255) if bits == 8 else F32(15)
    each = len(ours) // n // _LANES
    mine, other = ours.reshape(len(ours) // _LANES, _LANES), theirs.reshape(len(ours) // _LANES, _LANES)
    plain = rtn.reshape(len(ours) // _LANES, _LANES)
    squares, reference, by_rtn, n_bad = F32(0), F32(0), F32(0), 0
    for g in range(n):
        scale, zero = factors[g], factors[n + g]
        low, high = -zero * scale, (last - zero) * scale
        most, own, nearest, beyond = scale * limits[0], F32(0), F32(0), 0
        for k in range(g * each, g * each + each):
            for j in range(_LANES):
                a, b, c = mine[k, j], other[k, j], plain[k, j]
                own += (a - b) * (a - b)
                nearest += (c - b) * (c - b)
                reference += b * b
                inside = b if b > low else low
                inside = inside if inside < high else high
                beyond |= abs(a - inside) > most
        tiny = scale * limits[2]
        if beyond or own > nearest * limits[1] + tiny * tiny * F32(each * _LANES):
            n_bad += 1
        squares, by_rtn = squares + own, by_rtn + nearest
    return squares, reference, by_rtn, n_bad


@numba.njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc", "contract"})
def judge_blocks(
    ours: Row, theirs: Row, nearest: Row, rtn: Row, absolute: Row, numbers: Row
) -> tuple[np.float32, np.float32, np.float32, int]:
    """The same sums of blocks of 16 columns; and how many blocks are further off than codes of theirs would be.

    nearest: theirs in the nearest codes of our scales. absolute: how far a weight of each block may be off. numbers:
    what the squared error of a block may exceed that of `nearest` and of `rtn` by, its second and third.
    """
    n = len(absolute)
    mine, other = ours.reshape(n, 16), theirs.reshape(n, 16)
    closest, plain = nearest.reshape(n, 16), rtn.reshape(n, 16)
    squares, reference, by_rtn, n_bad = F32(0), F32(0), F32(0), 0
    for k in range(n):
        own, least, left, norm, beyond = F32(0), F32(0), F32(0), F32(0), 0
        for j in range(16):
            a, b, c, d = mine[k, j], other[k, j], closest[k, j], plain[k, j]
            own += (a - b) * (a - b)
            least += (c - b) * (c - b)
            left += (d - b) * (d - b)
            norm += b * b
            beyond |= abs(a - b) > absolute[k]
        if beyond or own > least * numbers[1] or own > left * numbers[2]:
            n_bad += 1
        squares, by_rtn, reference = squares + own, by_rtn + left, reference + norm
    return squares, reference, by_rtn, n_bad


ENCODERS: Final = {"affine_mse": encode_affine_mse}
