"""What a draft's weights are worth, by plain code that shares nothing with mtpforge: float64, element by element.

decoded(parts, shape)          float64 [out, in]
rounded_from(parts, wanted)    whether each number is `wanted` rounded: half a step of its format away, and the scale's
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from slow_twins.floats import e2m1, e4m3

_E4M3 = np.array([e4m3(byte) for byte in range(256)])
_E2M1 = np.array([e2m1(code) for code in range(16)])
LEAST = 1e-37  # below it float32, in which every format is defined, has no digits left
Parts = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Stored:
    """What the parts alone do not tell: bits of packed integers, rows and columns under one scale of a block."""

    bits: int = 4
    block: tuple[int, int] = (32, 32)


USUAL = Stored()


def parts_of(tensors: Parts, module: str) -> Parts:
    """Suffix -> tensor of one module, by its full name."""
    return {n.rpartition(".")[2]: t for n, t in tensors.items() if n.rpartition(".")[0] == module}


def decoded(parts: Parts, shape: tuple[int, int], stored: Stored = USUAL) -> np.ndarray:
    """The matrix [out, in] that these parts are, float64, NaN where its bytes say so; no `weight_shape` is believed."""
    if "weight_packed" in parts and "weight_global_scale" in parts:
        return _fp4(parts["weight_packed"], parts["weight_scale"], 1 / _number(parts["weight_global_scale"]))
    if "weight_scale_2" in parts:
        return _fp4(parts["weight"], parts["weight_scale"], _number(parts["weight_scale_2"]))
    if "weight_packed" in parts:
        return _packed(parts, shape, stored.bits)
    weight = parts["weight"]
    if weight.dtype == torch.int8:
        zero = _wide(parts["weight_zero_point"]) if "weight_zero_point" in parts else 0.0
        return (_wide(weight) - zero) * _wide(parts["weight_scale"])
    if weight.dtype == torch.float8_e4m3fn:
        return _E4M3[weight.view(torch.uint8).numpy()] * _over(_scale(parts), shape, stored.block)
    return _wide(weight)


def rounded_from(parts: Parts, wanted: np.ndarray, stored: Stored = USUAL) -> bool:
    """Whether these parts are what rounding may make of `wanted`; generous by a percent of a step."""
    if "weight_shape" in parts and tuple(parts["weight_shape"].tolist()) != wanted.shape:
        return False
    held = decoded(parts, wanted.shape, stored)
    if held.shape != wanted.shape or not np.isfinite(held).all():
        return False
    return bool((np.abs(held - wanted) <= 1.01 * _step(parts, wanted, stored) + LEAST).all())


def _step(parts: Parts, wanted: np.ndarray, stored: Stored) -> np.ndarray:
    """Half the distance of neighbours; of integers with the drift of a BF16 scale over all their steps."""
    if "weight_scale_2" in parts or "weight_global_scale" in parts:
        unit = (
            _number(parts["weight_scale_2"]) if "weight_scale_2" in parts else 1 / _number(parts["weight_global_scale"])
        )
        block = np.repeat(_E4M3[parts["weight_scale"].view(torch.uint8).numpy()], 16, 1)
        return np.maximum(block, 6 * 2.0**-10) * abs(unit)
    if "weight_packed" in parts or parts["weight"].dtype == torch.int8:
        scale = np.abs(_scale(parts))
        drift = 2 ** (stored.bits if "weight_packed" in parts else 8) / 256
        return np.repeat(scale * (0.5 + drift), wanted.shape[1] // scale.shape[1], 1)
    if parts["weight"].dtype == torch.float8_e4m3fn:
        scale = np.abs(_over(_scale(parts), wanted.shape, stored.block))
        return np.maximum(np.abs(wanted) / 16, scale * 2.0**-10)
    return np.abs(wanted) * 2.0**-8


def _wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def _number(tensor: torch.Tensor) -> float:
    return float(tensor.reshape(-1)[0])


def _scale(parts: Parts) -> np.ndarray:
    return _wide(parts["weight_scale_inv"] if "weight_scale_inv" in parts else parts["weight_scale"])


def _over(scale: np.ndarray, shape: tuple[int, int], block: tuple[int, int]) -> np.ndarray:
    """A scale of the matrix, of its rows, or of blocks, over every element."""
    if scale.size == 1 or scale.shape == (shape[0], 1):
        return np.broadcast_to(scale.reshape(scale.shape if scale.ndim == 2 else (1, 1)), shape)
    return np.repeat(np.repeat(scale, block[0], 0), block[1], 1)[: shape[0], : shape[1]]


def _fp4(codes: torch.Tensor, scale: torch.Tensor, unit: float) -> np.ndarray:
    raw = codes.numpy()
    numbers = np.stack([_E2M1[raw & 15], _E2M1[raw >> 4]], -1).reshape(raw.shape[0], -1)
    return numbers * np.repeat(_E4M3[scale.view(torch.uint8).numpy()], 16, 1) * unit


def _packed(parts: Parts, shape: tuple[int, int], bits: int) -> np.ndarray:
    """A stream of `bits` a number along the columns; zero points run down the rows."""
    codes = _stream(parts["weight_packed"].numpy(), bits, shape[1])
    scale = _wide(parts["weight_scale"])
    zero = np.full(scale.shape, 2.0 ** (bits - 1))
    if "weight_zero_point" in parts:
        zero = _stream(parts["weight_zero_point"].numpy().T, bits, shape[0]).T
    group = shape[1] // scale.shape[1]
    return (codes - np.repeat(zero, group, 1)) * np.repeat(scale, group, 1)


def _stream(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    raw = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")[:, : count * bits]
    return raw.reshape(words.shape[0], count, bits) @ 2.0 ** np.arange(bits)
