"""Stored weights as BF16 by plain arithmetic, with numpy alone: what builds of a census are held to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from censuses import Array, bf16

KINDS: dict[str, Any] = {"F32": np.float32, "I32": np.int32, "I64": np.int64, "I8": np.int8, "BF16": np.uint16}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
SIGNED4 = np.array([*range(8), *range(-8, 0)], np.float32)


class Tensors:
    """The tensors of a folder by name, mapped: BF16 as uint16, 8-bit floats as uint8."""

    def __init__(self, folder: Path) -> None:
        self.dtypes: dict[str, str] = {}
        self._found: dict[str, Array] = {}
        for file in sorted(folder.glob("*.safetensors")):
            data = np.memmap(file, np.uint8, "r")
            length = int.from_bytes(bytes(data[:8]), "little")
            header = json.loads(bytes(data[8 : 8 + length]))
            for name, entry in header.items():
                if name != "__metadata__":
                    start, stop = (8 + length + at for at in entry["data_offsets"])
                    kind = KINDS.get(entry["dtype"], np.uint8)
                    self._found[name] = data[start:stop].view(kind).reshape(entry["shape"])
                    self.dtypes[name] = entry["dtype"]

    @property
    def names(self) -> list[str]:
        """All of them, in order."""
        return sorted(self._found)

    def parts(self, module: str) -> dict[str, Array]:
        """Those of one module by suffix."""
        return {name.rpartition(".")[2]: t for name, t in self._found.items() if name.rpartition(".")[0] == module}

    def __getitem__(self, name: str) -> Array:
        return self._found[name]


def dense(stored: Tensors, module: str) -> Array:
    """A module's weight as bits of BF16, uint16 [out, in]."""
    parts = stored.parts(module)
    if "weight_packed" in parts:  # INT8 a row: four codes of 8 bits to a word, 128 for 0
        codes = parts["weight_packed"].view(np.uint8).astype(np.float32) - 128
        return bf16(codes * number(parts["weight_scale"]))
    dtype, weight = stored.dtypes[f"{module}.weight"], parts["weight"]
    if dtype == "BF16":
        return weight
    if dtype == "I8":  # W4AFP8: two codes to a byte, the even column in its low half
        return bf16(grouped(SIGNED4[nibbles(weight.view(np.uint8))], number(parts["weight_scale_inv"])))
    if dtype == "F8_E4M3":
        steps = np.repeat(np.repeat(parts["weight_scale_inv"], 128, 0), 128, 1)
        return bf16(e4m3()[weight] * steps[: weight.shape[0], : weight.shape[1]])
    values, scale = E2M1[nibbles(weight)], parts["weight_scale"]
    if "weight_scale_2" in parts:  # NVFP4
        return bf16(grouped(values, e4m3()[scale] * parts["weight_scale_2"]))
    return bf16(grouped(values, np.float32(2) ** (scale.astype(np.float32) - 127)))


def nibbles(packed: Array) -> Array:
    """Low half first: [rows, 2 * columns]."""
    return np.stack((packed & 15, packed >> 4), -1).reshape(len(packed), -1)


def grouped(values: Array, steps: Array) -> Array:
    """Values [rows, columns] times the step of their group, float32."""
    return values * np.repeat(steps, values.shape[1] // steps.shape[1], 1)


def number(stored: Array) -> Array:
    """BF16 or float32 as float32."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored


def e4m3() -> Array:
    """The numbers of all 256 codes, without infinities; the two NaN are left out."""
    exponent, mantissa = np.arange(128) >> 3, np.arange(128) & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.concatenate((size, -size)).astype(np.float32)
