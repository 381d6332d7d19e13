"""Row kernels that decode, one a format, in the Python that numba compiles: rows.py does, and drives them.

The results are those of the plain torch functions beside this file, bit for bit; those stay the second opinion, and the
path of everything that has no kernel.

What makes the loops fast: each does one thing, so that LLVM vectorises it. It unrolls inner loops of a short constant
length first and then leaves them scalar, which is four times slower: so blocks of 16 columns go by fours (`of_four`).

    decoder(codes U8 [bytes of a row], factors F32 [scales of a row], row F32 [columns]) -> bits

The bits are those of a bound of the magnitudes, as float32: a NaN or Inf is found in them, whatever else became of it.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt

F32 = np.float32
Row = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_MAGNITUDE: Final = np.int32(0x7FFFFFFF)
_INF: Final = np.int32(0x7F800000)
_EIGHT_MAGNITUDES: Final = np.uint64(0x7F7F7F7F7F7F7F7F)
_EIGHT_ONES: Final = np.uint64(0x0101010101010101)


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
E4M3 = _e4m3_table()


@_inner
def of_four(j: int, first: float, second: float, third: float, fourth: float) -> float:
    """The factor of column j of 64, under one factor every 16 columns."""
    return (first if j < 16 else second) if j < 32 else (third if j < 48 else fourth)


@_inner
def scale_blocks(row: Row, factors: Row) -> np.int32:
    """Multiply 16 columns by each factor. Bits of a bound of what comes out: 6, the largest code, times a factor."""
    n = len(factors) // 4
    blocks, fours = row[: 64 * n].reshape(n, 64), factors[: 4 * n].reshape(n, 4)
    for k in range(n):
        first, second, third, fourth = fours[k, 0], fours[k, 1], fours[k, 2], fours[k, 3]
        for j in range(64):
            blocks[k, j] *= of_four(j, first, second, third, fourth)
    for j in range(64 * n, len(row)):
        row[j] *= factors[j // 16]
    bound: np.int32 = raised(factors, 3)  # 6 < 2^3
    return bound


@_inner
def raised(factors: Row, by: int) -> np.int32:
    """Bits of the largest factor times 2^by: of Inf where that is none any more, which a factor of Inf is itself."""
    bits, most = factors.view(np.int32), np.int32(0)
    for k in range(len(factors)):
        most = max(most, bits[k] & _MAGNITUDE)
    bound: np.int32 = min(most, _INF - np.int32(by << 23)) + np.int32(by << 23)
    return bound


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
    bound: np.int32 = bound_e4m3(codes, factors)
    return bound


@_inner
def bound_e4m3(codes: Bytes, factors: Row) -> np.int32:
    """Bits of a bound of codes times factors; of NaN where a code is."""
    words, carried = codes.view(np.uint64), np.uint64(0)
    for j in range(len(words)):  # eight codes at once: one more than 0x7F, a NaN, carries into the bit of the sign
        carried |= (words[j] & _EIGHT_MAGNITUDES) + _EIGHT_ONES
    bound: np.int32 = raised(factors, 9)  # 448 < 2^9
    return np.int32(0x7FC00000) if carried & ~_EIGHT_MAGNITUDES else bound


def decode_e4m3_mx(codes: Bytes, factors: Row, row: Row) -> np.int32:
    """MXFP8: FP8 under one power of two every 32 columns."""
    whole = row.view(np.uint32)
    for j in range(len(codes)):
        whole[j] = (np.uint32(codes[j] & 0x7F) << np.uint32(20)) + np.uint32(120 << 23)
    blocks, values = codes.reshape(len(factors), 32), row.reshape(len(factors), 32)
    for k in range(len(factors)):
        factor = factors[k]
        for j in range(32):
            c = blocks[k, j]
            magnitude = F32(c & 0x7F) * F32(2.0**-9) if (c & 0x7F) < 8 else values[k, j]
            values[k, j] = magnitude * (-factor if c & 0x80 else factor)
    bound: np.int32 = bound_e4m3(codes, factors)
    return bound


def decode_bf16(codes: Bytes, factors: Row, row: Row) -> np.int32:
    """BF16: the upper half of a float32."""
    halves, whole, most = codes.view(np.uint16), row.view(np.uint32), np.uint16(0)
    for j in range(len(halves)):
        whole[j] = np.uint32(halves[j]) << np.uint32(16)
    for j in range(len(halves)):
        half = np.uint16(halves[j] & np.uint16(0x7FFF))  # numba would go on in 64 bits
        most = half if half > most else most
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
        magnitude = np.int32(bits[j] & _MAGNITUDE)
        most = magnitude if magnitude > most else most
    return most


@numba.njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc", "contract"})
def compare(ours: Row, theirs: Row, absolute: Row, relative: float) -> tuple[np.float32, np.float32, bool]:
    """Sums of the squared differences and of their squares, and whether any number is beyond its limit.

    absolute: one for every len(row) / len(absolute) columns, a multiple of 16. The limit is that, or `relative` of
    their number, whichever is more. Sums may be taken in any order: their last digits are no one's concern.
    """
    size, n = len(ours) // len(absolute), len(ours) // 64
    squares, reference, beyond = F32(0), F32(0), 0
    for k in range(n):
        at = 64 * k
        first, second = absolute[at // size], absolute[(at + 16) // size]
        third, fourth = absolute[(at + 32) // size], absolute[(at + 48) // size]
        for j in range(64):
            a, b = ours[at + j], theirs[at + j]
            least, most = of_four(j, first, second, third, fourth), abs(b) * relative
            beyond |= abs(a - b) > (most if most > least else least)
            squares += (a - b) * (a - b)
            reference += b * b
    for j in range(64 * n, len(ours)):
        a, b, least, most = ours[j], theirs[j], absolute[j // size], abs(theirs[j]) * relative
        beyond |= abs(a - b) > (most if most > least else least)
        squares += (a - b) * (a - b)
        reference += b * b
    return squares, reference, beyond != 0


DECODERS: Final = {
    "e2m1": decode_e2m1,
    "e2m1_signed": decode_e2m1_signed,
    "e4m3": decode_e4m3,
    "e4m3_mx": decode_e4m3_mx,
    "affine": decode_affine,
    "bf16": decode_bf16,
    "f32": decode_f32,
}
