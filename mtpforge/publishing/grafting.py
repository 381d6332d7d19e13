"""decide(): a graft, from headers and configs alone: what is linked, rewritten and added, and what configs say then.

The layer is taken byte for byte where an engine can be told of it as it is stored. Where it cannot, or where a scheme
is asked for, it is planned as `build` plans a draft for this target, and that draft goes in.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

from mtpforge import errors, manifest, traps, versions
from mtpforge.checkpoint import Named, metadata, open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.drafting import deciding, remarks
from mtpforge.drafting.deciding import Job
from mtpforge.drafting.request import Request, Watching
from mtpforge.engines import DEFAULT, engine_of, named, overlay
from mtpforge.engines.engine import Engine
from mtpforge.errors import MtpforgeError
from mtpforge.families import Family, family_of
from mtpforge.publishing import patches
from mtpforge.publishing.layers import Taken, stated_hashes, taken
from mtpforge.publishing.patches import Patch
from mtpforge.publishing.target_files import Shard, TargetFiles, target_files, without
from mtpforge.report import Trap
from mtpforge.scheme import Scheme
from mtpforge.sourcing import refuse_other_model, stored_layer
from mtpforge.tensors import Spec, TensorRef
from mtpforge.verifying.remaking import as_typed, where_absent
from mtpforge.writing import preflight
from mtpforge.writing.claim import hidden_folder
from mtpforge.writing.folder import DELTA, GRAFT, OVERLAY, kind
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


def decide(asked: Asked, watching: Watching | None = None) -> Graft:
    """The graft of a layer into a target. MtpforgeError for every refusal that needs no writing."""
    watching = watching or Watching.by(None, None)
    preflight.refuse_unwritable(Path(asked.out), kind(DELTA if asked.is_delta else GRAFT))
    engine = engine_of(asked.engine)
    target, family = opened(asked, engine, watching)
    assert asked.layer is not None  # noqa: S101 -- a delta has a function of its own
    held = open_checkpoint(asked.layer, offline=asked.offline)
    watching.on_remark(remarks.of_checkpoint("layer", held))
    refuse_other_model(family, held, target)
    files = target_files(target, engine)
    found = _taken(asked, held, target, family, engine)
    if isinstance(found, Taken):
        layer, told, scheme, n_experts = Layer(held, found.refs), found.told, found.scheme, found.n_experts
        specs, why = {name: ref.spec for name, ref in found.refs.items()}, ""
    else:
        job, told, scheme = _built(asked, held, target, engine, watching)
        layer, n_experts = Layer(held, {}, job), job.plan.n_experts
        specs, why = job.plan.specs, found
    config = patches.difference(target.config, engine.carrying_config(told))
    side, goes = _side(target, told, family, engine, scheme)
    addition = Addition(
        engine=asked.engine,
        target=target.identity,
        content=files.content,
        layer_of=held.identity,
        number=family.layer(target.config),
        scheme=scheme.name,
        n_experts=n_experts,
        config=config,
        side=side,
        side_goes=goes,
        tensors={files.spelled(name): spec for name, spec in specs.items()},
        documents={f"mtp-{name}": data for name, data in sorted(held.documents().items())},
        stated={
            side: [asdict(s) for s in versions.stated(of, family)] for side, of in (("target", target), ("layer", held))
        },
        scales=layer.job.plan.scales if layer.job else _scales(held),
    )
    found_traps = traps.of_other_version(target, held, family, "layer")
    stated = {files.spelled(name): sha256 for name, sha256 in stated_hashes(held, layer.refs).items()}
    return replace(laid_out(asked, files, addition, layer, None, found_traps, why), stated=stated)


def _scales(held: Checkpoint) -> str:
    """How the scales of a draft that goes in as it is were found; "" of what says nothing of it."""
    with suppress(MtpforgeError):
        told = manifest.find(held) or manifest.of_graft(held)
        return told.scales if told else ""
    return ""


def opened(asked: Asked, engine: Engine, watching: Watching) -> tuple[Checkpoint, Family]:
    """The target. MtpforgeError where it is none."""
    target = open_checkpoint(asked.target, offline=asked.offline)
    watching.on_remark(remarks.of_checkpoint("target", target))
    family = family_of(target.config)
    for trap in traps.only_layer(target, family):
        raise MtpforgeError(trap.message, where=trap.where, fix="name the checkpoint that is served: `--into CKPT`")
    engine.refuse_misstated(target, target.config, family)
    return target, family


def _taken(asked: Asked, held: Checkpoint, target: Checkpoint, family: Family, engine: Engine) -> Taken | str:
    """The layer as it is stored, or why it is not taken so; MtpforgeError for a draft that cannot be."""
    is_draft = bool(traps.only_layer(held, family))
    if asked.scheme is not None and is_draft:
        raise MtpforgeError(
            "a draft goes in as it is stored: `--scheme` would make another one",
            where="option `--scheme`",
            fix="leave it out, or name what the draft was made from",
            code=errors.USAGE,
        )
    if asked.scheme is not None:
        return f"scheme {getattr(asked.scheme, 'name', asked.scheme)} is asked for"
    found = taken(held, stored_layer(held, family), target, family, engine)
    if isinstance(found, str) and is_draft:
        raise MtpforgeError(
            "this draft cannot go into this target as it is stored",
            where=held.label,
            why=found,
            fix=f"name what it was made from: {_from_source(asked, held, target)}",
        )
    return found


def _from_source(asked: Asked, draft: Checkpoint, target: Checkpoint) -> str:
    """The command that was typed, with what the draft was made from in its place."""
    told = None
    with suppress(MtpforgeError):
        told = manifest.find(draft)
    source = as_typed(told.source if told else "", draft, "SOURCE", target.location)
    words = ["mtpforge", "delta" if asked.is_delta else "graft", source]
    words += ["--against" if asked.is_delta else "--into", target.label, *named(asked.engine)]
    words += ["--link", asked.link] if asked.link != LINKS[0] else []
    words += [*(["--force"] if asked.force else []), "-o", str(asked.out)]
    return f"`{shlex.join(words)}`{where_absent(words)}"


def _built(
    asked: Asked, held: Checkpoint, target: Checkpoint, engine: Engine, watching: Watching
) -> tuple[Job, Checkpoint, Scheme]:
    """The draft that is built first, the target under the block that says so, and how the layer is stored then.

    Where the draft's own block may be of another method than the target's, it is planned again as the target's has it.
    """
    job = _job(asked, held, watching, asked.scheme)
    try:
        told, scheme = overlay.carried(target, engine, job.plan.scheme)
    except MtpforgeError as error:
        fix = error.fix or f"another `--scheme`; or a draft beside it: `mtpforge build --target {target.label}`"
        raise MtpforgeError(error.what, where=error.place, why=error.why, fix=fix, code=error.code) from error
    templates = {module.template for module in family_of(target.config).modules(target.config, 1)}
    if any(scheme.of(t).quantization != job.plan.scheme.of(t).quantization for t in templates):
        job = _job(asked, held, watching, scheme)
    return job, told, scheme


def _job(asked: Asked, held: Checkpoint, watching: Watching, scheme: Scheme | str | Path | None) -> Job:
    """The draft that is built first, as `build` would for this target."""
    request = Request(
        target=asked.target,
        source=held,
        out=hidden_folder(Path(asked.out)) / "layer",
        scheme=scheme,
        engine=asked.engine,
        standalone=True,
        force=True,
        offline=asked.offline,
    )
    job = deciding.decide(request, Watching(lambda _: None, watching.on_progress))
    assert isinstance(job, Job)  # noqa: S101 -- it is asked for
    return job


def _side(
    target: Checkpoint, told: Checkpoint, family: Family, engine: Engine, scheme: Scheme
) -> tuple[Patch | None, bool]:
    """What changes in ModelOpt's side file where the block does, and whether the file goes: it could not say so."""
    raw = target.small_file(metadata.SIDE_FILE) if told.is_restated else None
    if raw is None:
        return None, False
    stated: dict[str, object] = json.loads(raw)
    try:
        return patches.difference(stated, engine.carry(target.restated(stated), family, scheme)), False
    except MtpforgeError:
        return None, True


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
