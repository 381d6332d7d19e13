"""Safetensors headers of the draft, read without the project's own reader: a second opinion on the same bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import torch

# The limit of the safetensors library itself, safetensors/src/tensor.rs, MAX_HEADER_SIZE.
MAX_HEADER_BYTES = 100_000_000

TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


class Entry(TypedDict):
    """One tensor in a header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_header(path: Path) -> dict[str, Entry]:
    """Tensors of one file. ValueError for what is no safetensors file, or a file shorter than its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        raw = file.read(8)
        if len(raw) < 8:  # noqa: PLR2004  the length field
            raise ValueError(f"{path.name}: not a safetensors file")
        (n_bytes,) = struct.unpack("<Q", raw)
        if n_bytes > MAX_HEADER_BYTES or n_bytes + 8 > size:
            raise ValueError(f"{path.name}: header longer than the file")
        header: dict[str, Entry] = json.loads(file.read(n_bytes))
    header.pop("__metadata__", None)
    missing = 8 + n_bytes + max((entry["data_offsets"][1] for entry in header.values()), default=0) - size
    if missing > 0:
        raise ValueError(f"{path.name}: truncated, {missing} bytes missing")
    return header


def without_values(files: Iterable[str], *_: object, **__: object) -> Iterator[tuple[str, torch.Tensor]]:
    """What the engines' safetensors_weights_iterator yields, on the meta device: same order by file and name."""
    import torch

    for path in sorted(files):
        for name, entry in read_header(Path(path)).items():
            yield name, torch.empty(entry["shape"], dtype=getattr(torch, TORCH_NAMES[entry["dtype"]]), device="meta")


def with_values_of(files: Iterable[str], suffix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The same, but tensors whose names end so have their values, on the CPU: engines compare them while loading."""
    import torch

    for path in sorted(files):
        with Path(path).open("rb") as file:
            (n_bytes,) = struct.unpack("<Q", file.read(8))
            for name, entry in read_header(Path(path)).items():
                dtype = getattr(torch, TORCH_NAMES[entry["dtype"]])
                if not name.endswith(suffix):
                    yield name, torch.empty(entry["shape"], dtype=dtype, device="meta")
                    continue
                start, stop = entry["data_offsets"]
                file.seek(8 + n_bytes + start)
                data = bytearray(file.read(stop - start))
                yield name, torch.frombuffer(data, dtype=dtype).reshape(entry["shape"])
