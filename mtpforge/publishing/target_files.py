"""What lies in a target's folder: its files behind all links, and its shards with or without some of their tensors.

Engines read whole weight files and take what they find there, whatever the index says: a tensor that is superseded has
to be out of its file. The other tensors of such a file keep their names, their order and their bytes.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mtpforge.checkpoint import header, metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.checkpoint.folder import Folder, open_folder
from mtpforge.checkpoint.hub.snapshots import snapshot
from mtpforge.checkpoint.tensor_names import WITHIN, plain
from mtpforge.engines.engine import Engine
from mtpforge.errors import MtpforgeError, shown
from mtpforge.tensors import Spec
from mtpforge.writing.layout import ShardLayout, in_order

_HIDDEN: Final = "."


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a header spells it; start, stop: absolute in its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A weight file: its tensors in the order of their bytes, and the header's own remarks."""

    file: str
    tensors: tuple[Tensor, ...]
    remarks: Mapping[str, object] | None

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.stop - t.start for t in self.tensors)


@dataclass(frozen=True, slots=True)
class TargetFiles:
    """A target on this machine.

    folder: as a checkpoint. places: name -> file behind all links, of everything at its top but folders and hidden
    files. spelled: how it spells the names of the language model's tensors.
    """

    folder: Folder
    places: Mapping[str, Path]
    is_wrapped: bool

    @property
    def content(self) -> str:
        """The hash of its content, whatever its folder is called."""
        return self.folder.identity.rpartition("#")[2]

    def spelled(self, name: str) -> str:
        """A tensor's name as this target would spell it."""
        return f"{WITHIN}{name.removeprefix('model.')}" if self.is_wrapped else name

    def shard(self, file: str) -> Shard:
        """A weight file, read by its header."""
        if file not in self.places:
            raise MtpforgeError(
                f"`{shown(file)}` lies in a folder of its own",
                where=self.folder.location,
                why="files are linked into one folder, and engines read its top alone",
                fix="move the weight files to the top, and correct the index",
            )
        with errors_of(self.folder):
            raw = self.folder.raw_header(file)
            header.parse(raw, file, self.places[file].stat().st_size)  # refuses what lies
        entries: dict[str, dict[str, object]] = json.loads(raw)
        remarks = entries.pop(header.METADATA, None)
        data = header.LENGTH_BYTES + len(raw)
        tensors = (_tensor(name, entry, data) for name, entry in entries.items())
        return Shard(file, tuple(sorted(tensors, key=lambda t: (t.start, t.stop))), remarks)

    def index(self) -> dict[str, object] | None:
        """The index, None where there is none; its names as they are spelled."""
        raw = self.folder.small_file(metadata.INDEX)
        if raw is None:
            return None
        with errors_of(self.folder):
            metadata.index(raw)
        found: dict[str, object] = json.loads(raw)
        return found


def target_files(target: Checkpoint, engine: Engine) -> TargetFiles:
    """The files of a target. MtpforgeError where it is not whole on this machine, or in files that hide others."""
    home = snapshot(target, otherwise="name a folder that holds it") if target.revision else Path(target.location)
    # One that is open has its headers read already.
    folder = target if isinstance(target, Folder) and not target.is_restated else open_folder(home, label=target.label)
    for pattern, why in engine.hiding_files.items():
        if hiding := fnmatch.filter(folder.weight_files, pattern):
            raise MtpforgeError(
                f"`{shown(hiding[0])}` would hide the layer",
                where=shown(home),
                why=why,
                fix="name a target without them",
            )
    if not folder.weight_files:
        raise MtpforgeError(
            f"`{shown(target.label)}` holds no weights to link to",
            where=shown(home),
            why=folder.unread or "the folder holds a config and no weights",
            fix="name the whole checkpoint",
        )
    names = [entry.name for entry in home.iterdir() if entry.is_file() and not entry.name.startswith(_HIDDEN)]
    places = {name: (home / name).resolve() for name in sorted(names)}
    raw = folder.raw_header(folder.weight_files[0])
    return TargetFiles(folder, places, f'"{WITHIN}'.encode() in raw)


def _tensor(name: str, entry: Mapping[str, object], data: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
            return Tensor(name, dtype, tuple(shape), data + start, data + stop)
    raise TypeError(entry)  # parsed before


def without(shard: Shard, gone: Collection[str]) -> tuple[Shard, ShardLayout]:
    """The tensors of a shard that stay, where they lie now, and the file that holds them alone. gone: plain names."""
    kept = tuple(tensor for tensor in shard.tensors if plain(tensor.name) not in gone)
    rows = [(t.name, Spec(t.dtype, t.shape), t.stop - t.start) for t in kept]
    return Shard(shard.file, kept, shard.remarks), in_order(shard.file, rows, shard.remarks)
