"""NVFP4 decoded by its definition, in numpy: the reference for a few MB, for which importing a library takes longer.

Shares nothing with mtpforge's decoders: every number is made here from its bits. The tests hold it to nvidia-modelopt
and to compressed-tensors over every code, every scale and scales of the matrix from one end of float32 to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from mtpforge.checking.parts import Parts, Rows

Floats = npt.NDArray[np.float32]

NAME: Final = "a plain decoder of NVFP4 in numpy"
_BLOCK: Final = 16  # columns under one scale


def _e2m1(code: int) -> float:
    """Sign, 2 bits of exponent (bias 1), 1 bit of mantissa."""
    exponent, mantissa = code >> 1 & 3, code & 1
    magnitude = (1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2
    return -magnitude if code & 8 else magnitude


def _e4m3(byte: int) -> float:
    """Sign, 4 bits of exponent (bias 7), 3 bits of mantissa; all ones is NaN, there is no infinity."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    magnitude = (1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa / 8 * 2.0**-6
    magnitude = magnitude if byte & 127 != 127 else np.nan  # noqa: PLR2004 -- all seven bits
    return -magnitude if byte & 128 else magnitude


_E2M1: Final[Floats] = np.array([_e2m1(code) for code in range(16)], np.float32)
_E4M3: Final[Floats] = np.array([_e4m3(byte) for byte in range(256)], np.float32)


def decode(reader: str, parts: Parts, rows: Rows) -> bytes:
    """The weight's rows as BF16, [rows, columns] in row order. NaN and Inf in a scale pass through."""
    with np.errstate(all="ignore"):
        return _bf16(READERS[reader](parts, rows))


def _modelopt_nvfp4(parts: Parts, rows: Rows) -> Floats:
    # ModelOpt looks magnitudes up and multiplies by the sign only where it is set: nibble 8 is 0.0
    numbers = np.where(_E2M1 == 0, np.float32(0), _E2M1)
    return _values(numbers, parts["weight"].rows(*rows), _scales(parts, rows) * _scalar(parts, "weight_scale_2"))


def _nvfp4(parts: Parts, rows: Rows) -> Floats:
    factors = _scales(parts, rows) / _scalar(parts, "weight_global_scale")
    return _values(_E2M1, parts["weight_packed"].rows(*rows), factors)


def _values(numbers: Floats, packed: tuple[bytearray, tuple[int, ...]], factors: Floats) -> Floats:
    """Number times factor in float32; column 2j is the low nibble of byte j, 2j + 1 the high one."""
    held = np.frombuffer(packed[0], np.uint8).reshape(packed[1])
    codes = np.stack([held & 15, held >> 4], axis=-1).reshape(len(held), -1, _BLOCK)
    return (numbers[codes] * factors[:, :, None]).reshape(len(held), -1)


def _scales(parts: Parts, rows: Rows) -> Floats:
    raw, shape = parts["weight_scale"].rows(*rows)
    return _E4M3[np.frombuffer(raw, np.uint8).reshape(shape)]


def _scalar(parts: Parts, suffix: str) -> np.float32:
    return np.float32(np.frombuffer(parts[suffix].rows(0, 1)[0], "<f4")[0])


def _bf16(values: Floats) -> bytes:
    """To nearest, ties to even, in integers: add half of what is cut off, less one where the kept part is even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2").tobytes()


READERS: Final[dict[str, Callable[[Parts, Rows], Floats]]] = {"modelopt_nvfp4": _modelopt_nvfp4, "nvfp4": _nvfp4}
