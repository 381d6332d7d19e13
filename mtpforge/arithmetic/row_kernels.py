"""Row kernels, one for a format and direction, in the Python that numba compiles: rows.py does, and drives them.

The results are those of the plain torch functions beside this file, bit for bit; those stay the second opinion, and the
path of everything that has no kernel.

What makes the loops fast: each does one thing, so that LLVM vectorises it; inner loops have a constant length; rounding
to even is one addition of 1.5 * 2^23, whose low bits then are the integer. No fast-math but `nnan nsz` for the search
of minimum and maximum: a NaN is found in the bits of the row, by the driver, whatever else happened to it.

    decoder(codes U8 [bytes of a row], factors F32 [scales of a row], row F32 [columns]) -> bits
    encoder(row, numbers F32 [4], size, codes U8, scales U8, zeros U8, work F32 [2, groups])

scales are bytes of the stored dtype; zeros are codes, not yet packed, as they are packed along the rows.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt

F32 = np.float32
Row = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_ROUND: Final = F32(12582912.0)  # 1.5 * 2^23: adding it rounds |x| < 2^22 to the nearest integer, ties to even
_MAGNITUDE: Final = np.int32(0x7FFFFFFF)
_SEVEN: Final = F32(12582919.0)


def _e2m1_table(*, signed_zero: bool) -> npt.NDArray[np.uint64]:
    """Two float32 in 64 bits for every byte of two FP4 codes, the low nibble first."""
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], F32)
    numbers = np.concatenate([magnitudes, -magnitudes if signed_zero else F32(0) - magnitudes])
    every = np.arange(256)
    return np.stack([numbers[every & 15], numbers[every >> 4]], axis=1).view(np.uint64).reshape(256)


def _e4m3_table() -> npt.NDArray[np.float32]:
    """The number of every E4M3 code: sign, 4 bits exponent with bias 7, 3 bits mantissa; 0x7F and 0xFF are NaN."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    magnitude[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code < 128, magnitude, -magnitude).astype(F32)


_inner: Any = numba.njit(nogil=True, error_model="numpy")


def _nibble_table() -> npt.NDArray[np.uint64]:
    """Two float32 in 64 bits for every byte of two 4-bit codes, the low nibble first."""
    every = np.arange(256)
    return np.stack([every & 15, every >> 4], axis=1).astype(F32).view(np.uint64).reshape(256)


_NIBBLES = _nibble_table()
_E2M1_SIGNED = _e2m1_table(signed_zero=True)
_E2M1_PLAIN = _e2m1_table(signed_zero=False)
_E4M3 = _e4m3_table()


@_inner
def scale_blocks(row: Row, factors: Row) -> np.int32:
    """Multiply 16 columns by each factor. Bits of a bound of what comes out: 6, the largest code, times a factor."""
    blocks = row.reshape(len(factors), 16)
    for k in range(len(factors)):
        factor = factors[k]
        for j in range(16):
            blocks[k, j] *= factor
    bits, most = factors.view(np.int32), np.int32(0)
    for k in range(len(factors)):
        most = max(most, bits[k] & _MAGNITUDE)
    return most + np.int32(3 << 23)  # 6 < 2^3


def decode_e2m1(codes: Bytes, factors: Row, row: Row) -> np.int32:
    """NVFP4 with the nibble 8 as 0.0 (ModelOpt): table look-ups, then one product a column."""
    pairs = row.view(np.uint64)
    for j in range(len(codes)):
        pairs[j] = _E2M1_PLAIN[codes[j]]
    bound: np.int32 = scale_blocks(row, factors)
    return bound


def decode_e2m1_signed(codes: Bytes, factors: Row, row: Row) -> np.int32:
    """NVFP4 with the nibble 8 as -0.0 (compressed-tensors)."""
    pairs = row.view(np.uint64)
    for j in range(len(codes)):
        pairs[j] = _E2M1_SIGNED[codes[j]]
    bound: np.int32 = scale_blocks(row, factors)
    return bound


def decode_e4m3(codes: Bytes, factors: Row, row: Row) -> np.int32:
    """FP8 under one factor every 128 columns, none of them cut."""
    whole = row.view(np.uint32)
    for j in range(len(codes)):  # exponent and mantissa of a normal number
        whole[j] = (np.uint32(codes[j] & 0x7F) << np.uint32(20)) + np.uint32(120 << 23)
    blocks, values = codes.reshape(len(factors), 128), row.reshape(len(factors), 128)
    for k in range(len(factors)):
        factor = factors[k]
        for j in range(128):  # below the least normal number codes count steps of 2^-9
            c = blocks[k, j]
            magnitude = F32(c & 0x7F) * F32(2.0**-9) if (c & 0x7F) < 8 else values[k, j]
            values[k, j] = magnitude * (-factor if c & 0x80 else factor)
    code, most, bits = np.uint8(0), np.int32(0), factors.view(np.int32)
    for j in range(len(codes)):
        code = max(code, codes[j] & np.uint8(0x7F))
    for k in range(len(factors)):
        most = max(most, bits[k] & _MAGNITUDE)
    return np.int32(0x7FC00000) if code == 0x7F else most + np.int32(9 << 23)  # 448 < 2^9


def decode_bf16(codes: Bytes, factors: Row, row: Row) -> np.int32:
    """BF16: the upper half of a float32."""
    halves, whole, most = codes.view(np.uint16), row.view(np.uint32), np.uint16(0)
    for j in range(len(halves)):
        whole[j] = np.uint32(halves[j]) << np.uint32(16)
    for j in range(len(halves)):
        most = max(most, halves[j] & np.uint16(0x7FFF))
    return np.int32(most) << np.int32(16)


def decode_affine(codes: Bytes, factors: Row, row: Row) -> np.int32:
    """Integers of 4 or 8 bits; factors: the scales of the groups, then their zero points, groups a multiple of 32."""
    if len(codes) == len(row):
        for j in range(len(codes)):
            row[j] = F32(codes[j])
    else:
        pairs = row.view(np.uint64)
        for j in range(len(codes)):
            pairs[j] = _NIBBLES[codes[j]]
    n = len(factors) // 2
    blocks, each = row.reshape(len(row) // 32, 32), len(row) // n // 32
    for g in range(n):
        scale, zero = factors[g], factors[n + g]
        for k in range(g * each, g * each + each):
            for j in range(32):
                blocks[k, j] = (blocks[k, j] - zero) * scale
    bits, most = factors.view(np.int32), np.int32(0)
    for g in range(n):
        most = max(most, bits[g] & _MAGNITUDE)
    return most + np.int32(8 << 23)  # code - zero point < 2^8


def decode_f32(codes: Bytes, factors: Row, row: Row) -> np.int32:
    """Float32 as it is."""
    bits, whole, most = codes.view(np.int32), row.view(np.int32), np.int32(0)
    for j in range(len(bits)):
        whole[j] = bits[j]
        most = max(most, bits[j] & _MAGNITUDE)
    return most


def encode_f32(row: Row, numbers: Row, size: int, codes: Bytes, scales: Bytes, zeros: Bytes, work: Row) -> None:
    """Float32 as it is."""
    codes.view(F32)[:] = row


def encode_bf16(row: Row, numbers: Row, size: int, codes: Bytes, scales: Bytes, zeros: Bytes, work: Row) -> None:
    """BF16, to nearest even."""
    whole, halves = row.view(np.uint32), codes.view(np.uint16)
    for j in range(len(whole)):
        bits = whole[j]
        halves[j] = np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@numba.njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz"})
def group_range(row: Row, size: int, low: Row, high: Row) -> None:
    """Least and largest number of every group of `size` columns, a multiple of 32; 0 included."""
    blocks, each = row.reshape(len(row) // 32, 4, 8), size // 32
    for g in range(len(row) // size):
        lowest, highest = F32(0), F32(0)
        for k in range(g * each, g * each + each):
            for j in range(8):
                a, b, c, d = blocks[k, 0, j], blocks[k, 1, j], blocks[k, 2, j], blocks[k, 3, j]
                least, most = a if a < b else b, b if a < b else a
                lower, upper = c if c < d else d, d if c < d else c
                least = least if least < lower else lower
                most = most if most > upper else upper
                lowest = least if least < lowest else lowest
                highest = most if most > highest else highest
        low[g], high[g] = lowest, highest


@numba.njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz"})
def block_largest(row: Row, largest: Row) -> None:
    """Largest magnitude of every 16 columns."""
    blocks = row.reshape(len(largest), 16)
    for k in range(len(largest)):
        most = F32(0)
        for j in range(16):
            value = abs(blocks[k, j])
            most = value if value > most else most
        largest[k] = most


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
    group_range(row, size, low, high)
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


@numba.njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc", "contract"})
def compare(ours: Row, theirs: Row, absolute: Row, relative: float) -> tuple[np.float32, np.float32, np.float32]:
    """Sums of the squared differences and of their squares, and how far the worst number is beyond its limit.

    absolute: one for every len(row) / len(absolute) columns, a multiple of 16. The limit is that, or `relative` of
    their number, whichever is more. Sums may be taken in any order: their last digits are no one's concern.
    """
    each = len(ours) // len(absolute) // 16
    mine, other = ours.reshape(len(ours) // 16, 16), theirs.reshape(len(ours) // 16, 16)
    squares, reference, worst = F32(0), F32(0), F32(-1)
    for g in range(len(absolute)):
        least = absolute[g]
        for k in range(g * each, g * each + each):
            for j in range(16):
                a, b = mine[k, j], other[k, j]
                difference, size = abs(a - b), abs(b) * relative
                limit = size if size > least else least
                excess = difference - limit
                worst = excess if excess > worst else worst
                squares += difference * difference
                reference += b * b
    return squares, reference, worst


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
        scale[k] = _E4M3[stored[k]]


def encode_e2m1(row: Row, numbers: Row, size: int, codes: Bytes, scales: Bytes, zeros: Bytes, work: Row) -> None:
    """compressed-tensors' NVFP4; numbers: its global scale."""
    n = len(row) // 16
    scale = work[0][:n]
    block_largest(row, scale)
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
    block_largest(row, scale)
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
def pack_e2m1(row: Row, factors: Row, codes: Bytes) -> None:
    """Nearest FP4 codes of row / factors, two a byte: the least of three roundings, as in float4._nearest.

    A negative that rounds to zero keeps its sign.
    """
    blocks = row.reshape(len(factors), 16)
    for k in range(len(factors)):
        factor = factors[k]
        for j in range(16):
            x = blocks[k, j] / factor
            magnitude = abs(x)
            magnitude = magnitude if magnitude < F32(8) else F32(8)
            half = magnitude * F32(2) + _ROUND
            one = (magnitude + _ROUND) + F32(2)
            two = (magnitude * F32(0.5) + _ROUND) + F32(4)
            code = half if half < one else one
            code = code if code < two else two
            code = code if code < _SEVEN else _SEVEN
            blocks[k, j] = code + F32(8) if x < F32(0) else code
    whole = row.view(np.int32)
    for j in range(len(codes)):
        codes[j] = np.uint8((whole[2 * j] & 15) | ((whole[2 * j + 1] & 15) << 4))


DECODERS: Final = {
    "e2m1": decode_e2m1,
    "e2m1_signed": decode_e2m1_signed,
    "e4m3": decode_e4m3,
    "affine": decode_affine,
    "bf16": decode_bf16,
    "f32": decode_f32,
}
ENCODERS: Final = {
    "f32": encode_f32,
    "bf16": encode_bf16,
    "affine": encode_affine,
    "e2m1": encode_e2m1,
    "e2m1_modelopt": encode_e2m1_modelopt,
}
