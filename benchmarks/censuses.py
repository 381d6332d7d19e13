"""Layers of published releases at full size: every tensor of a census in its dtype and shape, with made-up numbers.

The bytes of a tensor depend on its name alone, not on how many experts there are. Codes are evenly spread over all that
the dtype has, but for NaN; scales, norms and dense weights lie where trained ones do.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[1] / "tests" / "data"
WIDTHS = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I8": 1, "I32": 4, "I64": 8}  # bytes of one element
SPREAD = 0.02  # of dense weights
NAN = 0x7F  # of E4M3, beside the sign
EXPERT = re.compile(r"\.experts\.(\d+)\.")
ROUTER = re.compile(r"\.mlp\.gate\.[a-z_]+$")

# census -> whose config.json states the layer
RELEASES = {
    "bf16-zai-org": "target-bf16",
    "fp8-zai-org": "target-fp8",
    "int8-channel-quanttrio": "target-int4-int8mix-quanttrio",
    "mxfp4-amd": "target-mxfp4-amd",
    "nvfp4-experts-lukealonso": "target-nvfp4-lukealonso",
    "w4afp8": "target-w4afp8",
}

Array = np.ndarray[Any, Any]
Row = tuple[str, tuple[int, ...]]


def release(name: str, n_experts: int) -> dict[str, Any]:
    """The stored config.json of a release, with so many experts."""
    config: dict[str, Any] = json.loads((DATA / "configs" / f"{name}.config.json").read_text())
    return config | {key: n_experts for key in ("n_routed_experts", "num_experts") if key in config}


def source(census: str, folder: Path, n_experts: int) -> Path:
    """A checkpoint that holds the layer, in one file; made if it is not there."""
    made = folder / f"{census}-{n_experts}"
    if (made / "config.json").exists():
        return made
    made.mkdir(parents=True, exist_ok=True)
    rows = _rows(census, n_experts)
    with (made / "model.safetensors").open("wb") as file:
        file.write(_header(rows))
        for name, row in rows.items():
            file.write(np.ascontiguousarray(_numbers(name, row, rows)).data)
    (made / "config.json").write_text(json.dumps(release(RELEASES[census], n_experts)))
    return made


def _rows(census: str, n_experts: int) -> dict[str, Row]:
    """Tensor -> dtype and shape, of the first experts alone."""
    rows: dict[str, Row] = {}
    for line in (DATA / "census" / f"{census}.tsv").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, dtype, shown = line.split("\t")[:3]
        shape = () if shown == "-" else tuple(int(n) for n in shown.split(","))
        expert = EXPERT.search(name)
        if expert is None or int(expert[1]) < n_experts:
            rows[name] = dtype, (n_experts, *shape[1:]) if ROUTER.search(name) else shape
    return rows


def _header(rows: dict[str, Row]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in rows.items():
        end = at + math.prod(shape) * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _numbers(name: str, row: Row, rows: dict[str, Row]) -> Array:
    """What a tensor holds, as bytes of its dtype."""
    (dtype, shape), (module, _, part) = row, name.rpartition(".")
    bits = np.random.SFC64(zlib.crc32(name.encode()))
    random = bits.random_raw(-(-math.prod(shape) * WIDTHS[dtype] // 8)).view(np.uint8)[
        : math.prod(shape) * WIDTHS[dtype]
    ]
    if part == "weight_shape":  # of INT8, four codes to a word: all that the censuses above have
        out, words = rows[f"{module}.weight_packed"][1]
        return np.array([out, words * 4], np.int64)
    if "scale" in part:
        return _scales(part, dtype, random, rows.get(f"{module}.weight", ("I32", ()))[0])
    if dtype == "F8_E4M3":
        random[random & NAN == NAN] = 0
    if dtype in {"F8_E4M3", "U8", "I8", "I32"}:
        return random
    spread, middle = (SPREAD, 0.0) if len(shape) > 1 else (0.05, 4.0 if "correction" in part else 1.0)
    values = middle + spread * _normal()
    if dtype == "F32":
        return np.asarray(values[np.resize(random, math.prod(shape)).astype(np.intp) * 257], np.float32)
    return bf16(np.asarray(values, np.float32))[random.view(np.uint16)]


def _scales(part: str, dtype: str, random: Array, of: str) -> Array:
    """Scales under which weights are as wide as dense ones; of: the dtype of the codes."""
    if dtype == "U8":  # exponents
        return 118 + random % 5
    if dtype == "F8_E4M3":
        return 0x58 + random % 0x20
    widest = {"I32": 127, "I8": 7, "F8_E4M3": 448, "U8": 6 * 256}[of]
    n = len(random) // WIDTHS[dtype]
    factor = 0.01 if part.startswith("input") else 4 * SPREAD / widest
    even = n if n == 1 else random[:n]  # those of a whole matrix are the same everywhere: engines fuse some
    values = np.asarray(factor * (0.75 + np.asarray(np.resize(even, n), np.float32) / 512), np.float32)
    return bf16(values) if dtype == "BF16" else values


def _normal() -> Array:
    """65,536 numbers of a normal distribution."""
    return np.random.default_rng(0).standard_normal(1 << 16)


def bf16(values: Array) -> Array:
    """Float32 as the bits of BF16, to nearest, ties to even: uint16 of the same shape."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
