"""Where every byte of the weight files lies, decided from names, dtypes and shapes alone.

    8 bytes            length of the header, little-endian
    header             compact JSON, padded with spaces to 8
    tensors            one after the other, no holes

Tensors go by dtype in the order of the library's own enum, descending, then by name: so every start is aligned for its
dtype, and the file equals what `safetensors.torch.save_file` writes of the same tensors with metadata {"format": "pt"}.
Source: safetensors, safetensors/src/tensor.rs, `prepare` and `serialize_to_file` (0.8.0).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mtpforge.checkpoint import header
from mtpforge.tensors import DTYPES, Spec

_RANK: Final = {name: rank for rank, name in enumerate(DTYPES)}


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """One weight file: its name, its first bytes, where each tensor starts (absolute), and how long the file is."""

    file: str
    header: bytes
    starts: Mapping[str, int]
    n_bytes: int


def place(
    writes: Iterable[tuple[str, Spec]], max_shard_bytes: int | None = None, *, stem: str = "model"
) -> tuple[ShardLayout, ...]:
    """The weight files of these tensors: one, or as few in the given order as keep their tensors under the maximum.

    A tensor that is larger than the maximum gets a file of its own. stem: what the names of the files begin with.
    """
    groups: list[dict[str, Spec]] = [{}]
    held_bytes = 0
    for name, spec in writes:
        if max_shard_bytes is not None and groups[-1] and held_bytes + spec.n_bytes > max_shard_bytes:
            groups.append({})
            held_bytes = 0
        groups[-1][name] = spec
        held_bytes += spec.n_bytes
    if len(groups) == 1:
        return (_shard(f"{stem}.safetensors", groups[0]),)
    n = len(groups)
    return tuple(_shard(f"{stem}-{i:05d}-of-{n:05d}.safetensors", group) for i, group in enumerate(groups, 1))


def index(layouts: tuple[ShardLayout, ...], specs: Mapping[str, Spec]) -> bytes:
    """model.safetensors.index.json of several weight files, as transformers writes it."""
    weight_map = {name: layout.file for layout in layouts for name in layout.starts}
    return index_of(weight_map, sum(specs[name].n_bytes for name in weight_map))


def index_of(weight_map: Mapping[str, str], total_bytes: int) -> bytes:
    """The same of any files: tensor -> file, and the bytes of all tensors alone."""
    body = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()


def _shard(file: str, specs: Mapping[str, Spec]) -> ShardLayout:
    # the library compares names as UTF-8 bytes; code points, by which Python compares, have the same order
    ordered = sorted(specs.items(), key=lambda item: (-_RANK[item[1].dtype], item[0]))
    return in_order(file, [(name, spec, spec.n_bytes) for name, spec in ordered], {"format": "pt"})


def in_order(file: str, tensors: Iterable[tuple[str, Spec, int]], remarks: Mapping[str, object] | None) -> ShardLayout:
    """A weight file of these tensors, name, dtype and shape, bytes, in this order. remarks: `__metadata__`, if any."""
    entries: dict[str, object] = {} if remarks is None else {header.METADATA: remarks}
    offsets: dict[str, int] = {}
    end = 0
    for name, spec, n_bytes in tensors:
        offsets[name] = end
        entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    # as serde_json writes it: no blanks, text beyond ASCII as it is
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(header.LENGTH_BYTES, "little") + text
    starts = {name: len(head) + offset for name, offset in offsets.items()}
    return ShardLayout(file, head, starts, len(head) + end)
