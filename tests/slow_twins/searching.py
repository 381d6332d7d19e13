"""Searched scales of one group, one number at a time in Python's own floats. Imports nothing of mtpforge."""


def bf16(number):
    """To nearest even, with 8 bits of mantissa; 0 is stored as 2^-7."""
    if number == 0:
        return 2.0**-7
    exponent = 0
    while abs(number) >= 2.0 ** (exponent + 1):
        exponent += 1
    while abs(number) < 2.0**exponent:
        exponent -= 1
    step = 2.0 ** (exponent - 7)
    return round(number / step) * step  # Python rounds ties to even


def full_range(group, bits, symmetric):
    """Scale, not yet rounded, and signed zero point of the whole range."""
    low, high = min(0.0, *group), max(0.0, *group)
    if symmetric:
        return max(-low, high) / (2 ** (bits - 1) - 0.5), 0
    scale, half = (high - low) / (2**bits - 1), 2 ** (bits - 1)
    return scale, min(max(round(-half - low / scale), -half), half - 1) if scale else 0


def errors(group, scale, zero, bits):
    """What is left of every number."""
    half, left = 2 ** (bits - 1), []
    for number in group:
        code = min(max(round(number / scale + zero), -half), half - 1)
        left.append(abs(number - (code - zero) * scale))
    return left


def squared(group, scale, zero, bits):
    return sum(e * e for e in errors(group, scale, zero, bits))


def candidates(group, bits, symmetric):
    """Error of each of 20 ranges, from the whole one down to 0.81 of it: (squared error, stored scale)."""
    scale, zero = full_range(group, bits, symmetric)
    stored = [bf16(scale * (100 - i) / 100) for i in range(20)]
    return [(squared(group, s, zero, bits), s) for s in stored]
