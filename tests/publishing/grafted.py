"""What tests of grafts share: a folder as a stranger reads it, by safetensors and json alone."""

from __future__ import annotations

import hashlib
import json

from safetensors import safe_open

INDEX = "model.safetensors.index.json"
LAYER = "model.layers.3."


def tensors(folder):
    """Name -> (file, dtype, shape, sha256) of every tensor of every weight file; a name in two files fails."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        header.pop("__metadata__", None)
        with safe_open(path, "pt") as file:  # the library reads it too
            assert set(file.keys()) == set(header)
        for name, entry in header.items():
            assert name not in found, f"{name} lies in two files"
            first, last = entry["data_offsets"]
            digest = hashlib.sha256(raw[start + first : start + last]).hexdigest()
            found[name] = path.name, entry["dtype"], tuple(entry["shape"]), digest
    return found


def digests(held):
    return {name: row[1:] for name, row in held.items()}


def of_layer(held):
    return {name: row for name, row in held.items() if name.startswith(LAYER)}


def around(held):
    return {name: row for name, row in held.items() if not name.startswith(LAYER)}


def check_index(folder):
    """The index names each tensor where it lies, and counts the bytes of tensors alone."""
    index, held = json.loads((folder / INDEX).read_text()), tensors(folder)
    assert index["weight_map"] == {name: row[0] for name, row in held.items()}
    n_bytes = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            n_bytes += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    assert index["metadata"]["total_size"] == n_bytes


def state(folder):
    """Bytes, times and links of everything in a folder."""
    found = {}
    for path in sorted(folder.iterdir()):
        seen = path.stat()
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest(), seen.st_mtime_ns, seen.st_ino
    return found


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
