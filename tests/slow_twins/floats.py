"""Small floating-point numbers from their bits, by definition. Imports nothing of mtpforge."""

import math


def e4m3(byte):
    """OCP E4M3: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7F and 0xFF are NaN."""
    sign, exponent, mantissa = -1.0 if byte >> 7 else 1.0, (byte >> 3) & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def e2m1(nibble):
    """OCP E2M1: sign, 2 bits of exponent (bias 1), 1 of mantissa."""
    sign, exponent, mantissa = -1.0 if nibble >> 3 else 1.0, (nibble >> 1) & 3, nibble & 1
    return sign * (mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1))


def nearest_e2m1(number):
    """The code whose magnitude is nearest, ties to the even code; the sign of a negative number stays."""
    best = min(range(8), key=lambda code: (abs(e2m1(code) - abs(number)), code % 2))
    return best + (8 if number < 0 else 0)
