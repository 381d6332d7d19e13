"""A graft, decided: what goes in, which of the target's files stay, lose tensors or go, and how all of it will lie.

Asked      what is asked for
Addition   what a graft adds to a target, which a delta holds alone
Layer      where its tensors come from
laid_out() -> Graft, from headers alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from mtpforge.checkpoint import Named, metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.drafting.deciding import Job
from mtpforge.engines import DEFAULT
from mtpforge.families import family_of
from mtpforge.publishing.patches import Patch
from mtpforge.publishing.target_files import Shard, TargetFiles, without
from mtpforge.report import Trap
from mtpforge.scheme import Scheme
from mtpforge.tensors import Spec, TensorRef
from mtpforge.writing.folder import DELTA, GRAFT, OVERLAY
from mtpforge.writing.layout import ShardLayout, index_of, place

Link: TypeAlias = Literal["hard", "sym", "copy"]
LINKS: Final = ("hard", "sym", "copy")
LAYER_FILE: Final = "model-mtp"
_MARKS: Final = frozenset((GRAFT, DELTA, OVERLAY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked for. layer: a draft, or a checkpoint with the layer; None for what a delta adds. scheme: build so.

    engine: whose rules apply, where no delta says it. link: hard or symbolic links to the target's files, or copies.
    is_delta: a delta is to be made, not the graft itself.
    """

    layer: Named | None
    target: Named
    out: str | Path
    delta: str | Path | None = None
    scheme: Scheme | str | Path | None = None
    engine: str = DEFAULT
    link: Link = "hard"
    force: bool = False
    max_shard_bytes: int | None = None
    offline: bool = False
    is_delta: bool = False


@dataclass(frozen=True, slots=True)
class Addition:
    """What a graft adds to a target: all that a delta holds, and with the target all that a graft is made of.

    target: identity of the target, content: hash of its files. layer_of: identity of what the layer is from; number: of
    the layer. config, side: what changes in config.json and ModelOpt's side file; side None where there is none, or
    where it goes (`side_goes`). tensors: as the target spells their names. documents: licences of the layer.
    stated: "target" and "layer" -> what says of which version it is, as rows. scales: how those of its codes were
    found, "" where that is not known.
    """

    engine: str
    target: str
    content: str
    layer_of: str
    number: int
    scheme: str
    n_experts: int
    config: Patch
    side: Patch | None
    side_goes: bool
    tensors: Mapping[str, Spec]
    documents: Mapping[str, bytes]
    stated: Mapping[str, Sequence[object]] = field(default_factory=dict)
    scales: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """Where the tensors of the layer come from: plain name -> place in a checkpoint, or a draft to be built first."""

    checkpoint: Checkpoint
    refs: Mapping[str, TensorRef]
    job: Job | None = None


@dataclass(frozen=True, slots=True)
class Graft:
    """A graft, decided.

    shards: of the layer, as they will lie. kept: shards of the target that lose tensors, what stays of each and how it
    will lie. dropped: weight files of which nothing stays. linked: name -> file, of all that stays as it is. index:
    model.safetensors.index.json. superseded: tensors of the target that give way. why: of a layer that is built, why it
    does not go in as it is stored. stated: sha256 of each tensor by the
    document of what it is from: a delta, a draft, a graft.
    """

    asked: Asked
    files: TargetFiles
    addition: Addition
    layer: Layer
    shards: tuple[ShardLayout, ...]
    kept: tuple[tuple[Shard, ShardLayout], ...]
    dropped: tuple[str, ...]
    linked: Mapping[str, Path]
    index: bytes
    superseded: tuple[str, ...]
    traps: tuple[Trap, ...] = ()
    why: str = ""
    stated: Mapping[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """Where it will lie."""
        return Path(self.asked.out)

    @property
    def written_bytes(self) -> int:
        """Of weight files that are new."""
        copied = self.linked.values() if self.asked.link == "copy" else ()
        layouts = (*self.shards, *(layout for _, layout in self.kept))
        return sum(layout.n_bytes for layout in layouts) + sum(path.stat().st_size for path in copied)

    @property
    def linked_bytes(self) -> int:
        """Of files that are not written again."""
        return 0 if self.asked.link == "copy" else sum(path.stat().st_size for path in self.linked.values())


def laid_out(
    asked: Asked,
    files: TargetFiles,
    addition: Addition,
    layer: Layer,
    shards: tuple[ShardLayout, ...] | None,
    found: tuple[Trap, ...] = (),
    why: str = "",
) -> Graft:
    """The graft of an addition: which files stay, which are written anew. shards: None to lay them out."""
    held = files.folder.holders(family_of(files.folder.config).prefix(addition.number))
    kept, dropped = [], []
    for file in sorted({file for found in held.values() for file in found}):
        stays, layout = without(files.shard(file), held.keys())
        if stays.tensors:
            kept.append((stays, layout))
        else:
            dropped.append(file)
    changed = {*dropped, *(layout.file for _, layout in kept)}
    own = {metadata.CONFIG, metadata.INDEX, *_MARKS, *addition.documents}
    own |= {metadata.SIDE_FILE} if addition.side is not None or addition.side_goes else set()
    linked = {name: path for name, path in files.places.items() if name not in own | changed}
    if shards is None:
        shards = _shards(addition, {*linked, *(layout.file for _, layout in kept)}, asked.max_shard_bytes)
    return Graft(
        asked,
        files,
        addition,
        layer,
        shards,
        tuple(kept),
        tuple(dropped),
        linked,
        _index(files, linked, kept, shards, addition.tensors),
        tuple(sorted(held)),
        found,
        why,
    )


def _shards(addition: Addition, taken_names: set[str], most: int | None) -> tuple[ShardLayout, ...]:
    """The layer's files, under names that no file has which stays."""
    stem, number = LAYER_FILE, 1
    while any(name.startswith((f"{stem}.", f"{stem}-0")) for name in taken_names):
        number += 1
        stem = f"{LAYER_FILE}-{number}"
    return place(addition.tensors.items(), most, stem=stem)


def _index(
    files: TargetFiles,
    linked: Mapping[str, Path],
    kept: list[tuple[Shard, ShardLayout]],
    shards: tuple[ShardLayout, ...],
    tensors: Mapping[str, Spec],
) -> bytes:
    """The index: the target's names that stay where they lie, the layer's in its shards; bytes of tensors alone."""
    stay = [files.shard(file) for file in files.folder.weight_files if file in linked] + [shard for shard, _ in kept]
    sizes = {(shard.file, t.name): t.stop - t.start for shard in stay for t in shard.tensors}
    old = files.index()
    named = old["weight_map"] if old is not None else {name: file for file, name in sizes}
    assert isinstance(named, dict)  # noqa: S101 -- read before
    weight_map = {name: file for name, file in named.items() if (file, name) in sizes}
    total = sum(sizes[file, name] for name, file in weight_map.items()) + sum(s.n_bytes for s in tensors.values())
    weight_map |= {name: shard.file for shard in shards for name in shard.starts}
    return index_of(weight_map, total)
