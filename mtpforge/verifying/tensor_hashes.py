"""sha256 of tensors, made of their bytes as they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.gguf import Gguf
from mtpforge.families import family_of
from mtpforge.report import OnProgress, Progress
from mtpforge.tensors import TensorRef
from mtpforge.weights.reading import Read

_PIECE_BYTES: Final = 1 << 24


class HashedRead:
    """A `Read` that notes what it read."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._hashes: dict[str, hashlib._Hash] = {}

    def __call__(self, ref: TensorRef, into: memoryview) -> None:
        """Fill the memory."""
        self._read(ref, into)
        self._hashes.setdefault(ref.name, hashlib.sha256()).update(into)

    @property
    def sha256(self) -> dict[str, str]:
        """Of every tensor by its full name, in hex; right where all of it was read once, from its start on."""
        return {name: found.hexdigest() for name, found in self._hashes.items()}


def hashed(held: Checkpoint, names: Iterable[str], on_progress: OnProgress | None = None) -> dict[str, str]:
    """sha256 of these tensors, in hex; read in the order in which they lie, 16 MiB at a time."""
    refs = sorted(held.locate(names).values(), key=lambda ref: (ref.file, ref.start))
    held.fetch(refs, on_progress)
    buffer, found = bytearray(_PIECE_BYTES), dict[str, str]()
    done, total = 0, sum(ref.stop - ref.start for ref in refs)
    for ref in refs:
        digest = hashlib.sha256()
        for start in range(ref.start, ref.stop, _PIECE_BYTES):
            piece = memoryview(buffer)[: min(_PIECE_BYTES, ref.stop - start)]
            held.read(replace(ref, start=start, stop=start + len(piece)), piece)
            digest.update(piece)
            done += len(piece)
            if on_progress:
                on_progress(Progress("hash", done, total, "bytes"))
        found[ref.name] = digest.hexdigest()
    return found


def layer_identity(held: Checkpoint, hashes: Mapping[str, str] | None = None) -> str:
    """`<folder name>#<16 hex digits>` over config.json and every byte of the layer: two drafts may differ in one code.

    Of a hub repository `org/name@<commit>#<16 hex digits>`, with the digits of the folder that it is downloaded to; of
    GGUF what its keys say stands for config.json. hashes: sha256 of tensors where they are known already.
    """
    prefix = family_of(held.config).prefix(family_of(held.config).layer(held.config))
    refs = held.locate(sorted(name for name in held.names if name.startswith(prefix)))
    hashes = hashed(held, refs) if hashes is None else hashes
    is_gguf = isinstance(held, Gguf)
    stated = json.dumps(held.config, sort_keys=True).encode() if is_gguf else held.small_file(metadata.CONFIG)
    digest = hashlib.sha256(stated or b"")
    for name, ref in refs.items():
        digest.update(f"\n{name} {ref.spec} {hashes.get(name, '')}".encode("utf-8", "surrogateescape"))
    return f"{held.identity.rpartition('#')[0] or held.identity}#{digest.hexdigest()[:16]}"
