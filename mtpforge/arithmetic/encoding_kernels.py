"""Row kernels that encode, one a format, in the Python that numba compiles; see decoding_kernels.py.

Minimum and maximum come of flat passes over the row that each leave a quarter: LLVM does not vectorise the search
within a short group. Rounding to even is one addition of 1.5 * 2^23, whose low bits then are the integer. No fast-math
but `nnan nsz` for that search: a NaN is found in the bits that the decoder gives, whatever else became of it.

    encoder(row, numbers F32 [4], size, codes U8, scales U8, zeros U8, work F32 [2, columns])

scales are bytes of the stored dtype; zeros are codes, not yet packed, as they are packed along the rows.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from mtpforge.arithmetic.decoding_kernels import E4M3, F32, Bytes, Row, of_four

_ROUND: Final = F32(12582912.0)  # 1.5 * 2^23: adding it rounds |x| < 2^22 to the nearest integer, ties to even
_SEVEN: Final = F32(12582919.0)

_inner: Any = numba.njit(nogil=True, error_model="numpy")
_ordered: Any = numba.njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz"})


def encode_f32(row: Row, numbers: Row, size: int, codes: Bytes, scales: Bytes, zeros: Bytes, work: Row) -> None:
    """Float32 as it is."""
    codes.view(F32)[:] = row


def encode_bf16(row: Row, numbers: Row, size: int, codes: Bytes, scales: Bytes, zeros: Bytes, work: Row) -> None:
    """BF16, to nearest even."""
    whole, halves = row.view(np.uint32), codes.view(np.uint16)
    for j in range(len(whole)):
        bits = whole[j]
        halves[j] = np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@_ordered
def quarter(least: Row, most: Row, low: Row, high: Row) -> None:
    """low[i], high[i]: the least of four numbers of `least`, and the largest of four of `most`."""
    for i in range(len(low)):
        a, b, c, d = least[4 * i], least[4 * i + 1], least[4 * i + 2], least[4 * i + 3]
        first, second = a if a < b else b, c if c < d else d
        low[i] = first if first < second else second
        a, b, c, d = most[4 * i], most[4 * i + 1], most[4 * i + 2], most[4 * i + 3]
        first, second = a if a > b else b, c if c > d else d
        high[i] = first if first > second else second


@_ordered
def group_range(row: Row, size: int, low: Row, high: Row, scratch: Row) -> None:
    """Least and largest number of every group of `size` columns, a multiple of 32; 0 included.

    scratch: 5/8 of the columns or more.
    """
    n, m = len(row) // 4, len(row) // 16
    least, most = scratch[:n], scratch[n : 2 * n]
    lower, upper = scratch[2 * n : 2 * n + m], scratch[2 * n + m : 2 * n + 2 * m]
    quarter(row, row, least, most)
    quarter(least, most, lower, upper)
    each = size // 16
    for g in range(len(row) // size):
        lowest, highest = F32(0), F32(0)
        for k in range(g * each, g * each + each):
            lowest = lower[k] if lower[k] < lowest else lowest
            highest = upper[k] if upper[k] > highest else highest
        low[g], high[g] = lowest, highest


@_ordered
def block_largest(row: Row, largest: Row, scratch: Row) -> None:
    """Largest magnitude of every 16 columns; scratch: a quarter of the columns or more."""
    for i in range(len(row) // 4):
        a, b, c, d = abs(row[4 * i]), abs(row[4 * i + 1]), abs(row[4 * i + 2]), abs(row[4 * i + 3])
        first, second = a if a > b else b, c if c > d else d
        scratch[i] = first if first > second else second
    for k in range(len(largest)):
        a, b, c, d = scratch[4 * k], scratch[4 * k + 1], scratch[4 * k + 2], scratch[4 * k + 3]
        first, second = a if a > b else b, c if c > d else d
        largest[k] = first if first > second else second


@_inner
def store_bf16(scale: Row, n: int, stored: Bytes) -> None:
    """Round scales to BF16 in place, 2^-7 for 0, no Inf; `stored` gets the bytes."""
    bits, halves = scale.view(np.uint32), stored.view(np.uint16)
    for g in range(n):
        half = (bits[g] + np.uint32(0x7FFF) + ((bits[g] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        half = min(half, np.uint32(0x7F7F))
        if half == 0:
            half = np.uint32(0x3C00)
        halves[g] = np.uint16(half)
        bits[g] = half << np.uint32(16)


@_inner
def full_range(low: Row, high: Row, n: int, half: float, zeros: Bytes) -> None:
    """The range of each group becomes its zero point, in `low`, and its scale, in `high`, not yet rounded."""
    if len(zeros):
        for g in range(n):
            exact = (high[g] - low[g]) / (F32(2) * half - F32(1))
            zero = -half - low[g] / exact
            zero = F32(0) if zero != zero else min(max(zero, -half), half - F32(1))
            zero = (zero + _ROUND) - _ROUND
            zeros[g] = np.uint8(zero + half)
            high[g], low[g] = exact, zero
    else:
        for g in range(n):
            high[g] = max(high[g], -low[g]) / (half - F32(0.5))
            low[g] = F32(0)


def encode_affine(row: Row, numbers: Row, size: int, codes: Bytes, scales: Bytes, zeros: Bytes, work: Row) -> None:
    """Integers under BF16 scales; numbers: bits (4 or 8), 1 for asymmetric. `zeros` is empty where symmetric."""
    half = F32(128) if numbers[0] == 8 else F32(8)
    low, high, n = work[0], work[1], len(row) // size
    group_range(row, size, low, high, work[1][len(row) // 4 :])
    full_range(low, high, n, half, zeros)
    store_bf16(high, n, scales)
    round_quotients(row, size, high, low, half)
    pack_rounded(row, numbers[0], codes)


@_inner
def round_quotients(values: Row, size: int, scale: Row, zero: Row, half: float) -> None:
    """Codes as integers in the low bits of `values`: divide, add the zero point, clamp, round."""
    blocks, each = values.reshape(len(values) // 32, 32), size // 32
    least, most = -half, half - F32(1)
    for g in range(len(values) // size):
        divisor, offset = scale[g], zero[g]
        for k in range(g * each, g * each + each):
            for j in range(32):
                value = blocks[k, j] / divisor + offset
                value = value if value > least else least
                value = value if value < most else most
                blocks[k, j] = value + _ROUND


@_inner
def pack_rounded(rounded: Row, bits: float, codes: Bytes) -> None:
    """Signed integers in the low bits of `rounded` -> unsigned codes, two or one a byte."""
    whole = rounded.view(np.int32)
    if bits == 8:
        for j in range(len(whole)):
            codes[j] = np.uint8((whole[j] + 128) & 255)
    else:
        for j in range(len(whole) // 2):
            codes[j] = np.uint8(((whole[2 * j] + 8) & 15) | (((whole[2 * j + 1] + 8) & 15) << 4))


@_inner
def store_e4m3(scale: Row, n: int, stored: Bytes) -> None:
    """Round scales from 0 to 448 to E4M3 in place, to nearest even; `stored` gets the codes."""
    bits = scale.view(np.uint32)
    for k in range(n):
        if scale[k] < F32(2.0**-6):  # below the least normal number codes count steps of 2^-9
            code = np.uint32((scale[k] * F32(512) + _ROUND) - _ROUND)
        else:
            code = (bits[k] + np.uint32(0x7FFFF) + ((bits[k] >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
            code -= np.uint32(120 << 3)
        stored[k] = np.uint8(code)
        scale[k] = E4M3[stored[k]]


def encode_e2m1(row: Row, numbers: Row, size: int, codes: Bytes, scales: Bytes, zeros: Bytes, work: Row) -> None:
    """compressed-tensors' NVFP4; numbers: its global scale."""
    n = len(row) // 16
    scale = work[0][:n]
    block_largest(row, scale, work[1])
    for k in range(n):
        scale[k] = min(numbers[0] * (scale[k] / F32(6)), F32(448))
    store_e4m3(scale, n, scales)
    for k in range(n):
        if scales[k] == 0:
            scales[k], scale[k] = np.uint8(0x20), F32(0.125)
        scale[k] = scale[k] / numbers[0]
    pack_e2m1(row, scale, codes)


def encode_e2m1_modelopt(
    row: Row,
    numbers: Row,
    size: int,
    codes: Bytes,
    scales: Bytes,
    zeros: Bytes,
    work: Row,
) -> None:
    """ModelOpt's NVFP4; numbers: its second scale."""
    n = len(row) // 16
    scale = work[0][:n]
    block_largest(row, scale, work[1])
    divisor = F32(6) * numbers[0]
    for k in range(n):
        exact = scale[k] / divisor
        exact = F32(1) if exact == 0 else exact
        scale[k] = min(max(exact, F32(2.0**-9)), F32(448))
    store_e4m3(scale, n, scales)
    for k in range(n):
        scale[k] = scale[k] * numbers[0]
    pack_e2m1(row, scale, codes)


@_inner
def nearest_e2m1(x: np.float32) -> np.float32:
    """The FP4 code of x in the low bits: the least of three roundings, as in float4._nearest.

    A negative that rounds to zero keeps its sign.
    """
    magnitude = abs(x)
    magnitude = magnitude if magnitude < F32(8) else F32(8)
    half = magnitude * F32(2) + _ROUND
    one = (magnitude + _ROUND) + F32(2)
    two = (magnitude * F32(0.5) + _ROUND) + F32(4)
    code = half if half < one else one
    code = code if code < two else two
    code = code if code < _SEVEN else _SEVEN
    return code + F32(8) if x < F32(0) else code


@_inner
def pack_e2m1(row: Row, factors: Row, codes: Bytes) -> None:
    """Nearest FP4 codes of row / factors, two a byte."""
    n = len(factors) // 4
    blocks, fours = row[: 64 * n].reshape(n, 64), factors[: 4 * n].reshape(n, 4)
    for k in range(n):
        first, second, third, fourth = fours[k, 0], fours[k, 1], fours[k, 2], fours[k, 3]
        for j in range(64):
            blocks[k, j] = nearest_e2m1(blocks[k, j] / of_four(j, first, second, third, fourth))
    for j in range(64 * n, len(row)):
        row[j] = nearest_e2m1(row[j] / factors[j // 16])
    whole = row.view(np.int32)
    for j in range(len(codes)):
        codes[j] = np.uint8((whole[2 * j] & 15) | ((whole[2 * j + 1] & 15) << 4))


_NO_MINUS_ZERO: Final = np.array(
    [(c & 15 if c & 15 != 8 else 0) | (c & 0xF0 if c & 0xF0 != 0x80 else 0) for c in range(256)], np.uint8
)


@_inner
def store_e8m0(row: Row, scale: Row, largest: int, least: int, stored: Bytes, scratch: Row) -> None:
    """Exponents of every 32 columns into `stored`, and twice each, as powers of two, into `scale`: one for 16 columns.

    The mantissa of the largest magnitude is rounded to one bit, as in microscaling.exponents.
    """
    block_largest(row, scale, scratch)
    bits = scale.view(np.int32)
    for k in range(len(stored)):
        most = max(bits[2 * k], bits[2 * k + 1])
        exponent = min(max(((most + np.int32(1 << 21)) >> np.int32(23)) - np.int32(largest), least), 254)
        stored[k] = np.uint8(exponent)
        factor = np.int32(exponent) << np.int32(23) if exponent else np.int32(1 << 22)
        bits[2 * k], bits[2 * k + 1] = factor, factor


def encode_mx_e2m1(row: Row, numbers: Row, size: int, codes: Bytes, scales: Bytes, zeros: Bytes, work: Row) -> None:
    """MXFP4; numbers: the least exponent, 1 where a negative that rounds to zero keeps its sign."""
    scale = work[0][: len(row) // 16]
    store_e8m0(row, scale, 2, np.int32(numbers[0]), scales, work[1])
    pack_e2m1(row, scale, codes)
    if numbers[1] == 0:
        for j in range(len(codes)):
            codes[j] = _NO_MINUS_ZERO[codes[j]]


def encode_mx_e4m3(row: Row, numbers: Row, size: int, codes: Bytes, scales: Bytes, zeros: Bytes, work: Row) -> None:
    """MXFP8; a zero that is negative becomes none, as compressed-tensors adds a zero point of 0."""
    scale = work[0][: len(row) // 16]
    store_e8m0(row, scale, 8, 0, scales, work[1])
    blocks = row.reshape(len(scales), 32)
    for k in range(len(scales)):
        factor = scale[2 * k]
        for j in range(32):
            value = blocks[k, j] / factor + F32(0)
            value = value if value > F32(-448) else F32(-448)
            blocks[k, j] = value if value < F32(448) else F32(448)
    whole = row.view(np.uint32)
    for j in range(len(row)):
        bits = np.uint32(whole[j] & np.uint32(0x7FFFFFFF))
        normal = (bits + np.uint32(0x7FFFF) + ((bits >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
        tiny = np.uint32((abs(row[j]) * F32(512) + _ROUND) - _ROUND)
        code = tiny if bits < np.uint32(121 << 23) else np.uint32(normal - np.uint32(120 << 3))
        codes[j] = np.uint8(code | ((whole[j] >> np.uint32(24)) & np.uint32(0x80)))


ENCODERS: Final = {
    "mx_e2m1": encode_mx_e2m1,
    "mx_e4m3": encode_mx_e4m3,
    "f32": encode_f32,
    "bf16": encode_bf16,
    "affine": encode_affine,
    "e2m1": encode_e2m1,
    "e2m1_modelopt": encode_e2m1_modelopt,
}
