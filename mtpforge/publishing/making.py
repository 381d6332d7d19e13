"""make(): a decided graft on disk, whole or not at all: links, shards that lose tensors, shards of the layer.

Every byte that is written passes `writing`: a hidden folder, a journal of finished tensors, one rename. An interrupted
graft goes on where it stopped; the target and what the layer comes from are only read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeAlias

import mtpforge
from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.folder import open_folder
from mtpforge.checkpoint.tensor_names import plain
from mtpforge.errors import MtpforgeError
from mtpforge.manifest import find
from mtpforge.publishing import assembling, patches
from mtpforge.publishing.assembling import SCHEMA, Copy, Made, at
from mtpforge.publishing.graft import Addition, Graft
from mtpforge.report import OnProgress, Report
from mtpforge.verifying import damage
from mtpforge.writing import preflight
from mtpforge.writing.folder import DELTA, GRAFT, DraftFolder, kind, refuse_existing
from mtpforge.writing.layout import ShardLayout

Judge: TypeAlias = Callable[[Path], Report]


def refuse(graft: Graft, mark: str = GRAFT) -> None:
    """MtpforgeError for an output that cannot be made where it is asked for, or not in this way of linking."""
    inputs = {"target": graft.files.folder, "layer": graft.layer.checkpoint}
    preflight.refuse_output(inputs, graft.out, mark=mark)
    preflight.refuse_unwritable(graft.out, kind(mark))
    refuse_existing(graft.out, force=graft.asked.force, mark=mark)
    if mark == GRAFT and graft.asked.link == "hard":
        assembling.refuse_other_disk(graft.linked, graft.out)
    n_bytes = graft.written_bytes if mark == GRAFT else sum(layout.n_bytes for layout in graft.shards)
    preflight.refuse_small(n_bytes, graft.out)


def make(graft: Graft, judge: Judge, on_progress: OnProgress | None = None) -> Made:
    """The graft, at its place; judged before it gets its name. An interrupted one goes on where it stopped."""
    is_copied = graft.asked.link == "copy"
    copied = assembling.whole_files("target", graft.linked) if is_copied else ()
    kept = [assembling.of_shard("target", shard, layout) for shard, layout in graft.kept]
    layouts = (*graft.shards, *(layout for _, layout in graft.kept), *(layout for layout, _ in copied))
    beside = [copy for found in (*kept, *(copies for _, copies in copied)) for copy in found]

    def fill(folder: DraftFolder) -> tuple[dict[str, object], Report]:
        document = _layer_written(graft, folder, beside, GRAFT, on_progress)
        if not is_copied:
            assembling.link(folder, graft.linked, hard=graft.asked.link == "hard")
        for name, data in _small_files(graft).items():
            folder.write_file(name, data)
        return document, judge(folder.path)

    return _written(graft, GRAFT, layouts, fill)


def make_delta(graft: Graft, on_progress: OnProgress | None = None) -> Made:
    """What the graft adds, without the target: shards of the layer, patches, and what they may be applied to."""

    def fill(folder: DraftFolder) -> tuple[dict[str, object], Report]:
        document = _layer_written(graft, folder, [], DELTA, on_progress)
        for name, data in graft.addition.documents.items():
            folder.write_file(name, data)
        return document, Report("delta", ())

    return _written(graft, DELTA, graft.shards, fill)


def _written(graft: Graft, mark: str, layouts: tuple[ShardLayout, ...], fill: assembling.Fill) -> Made:
    refuse(graft, mark)
    job = graft.layer.job
    sides = (graft.addition.content, graft.layer.checkpoint.identity, job.plan.digest if job else "")
    where = assembling.Place(graft.out.absolute(), mark, graft.addition.target, sides, graft.asked.force)
    return assembling.written(where, layouts, fill)


def _layer_written(
    graft: Graft, folder: DraftFolder, beside: list[Copy], mark: str, on_progress: OnProgress | None
) -> dict[str, object]:
    """The layer's tensors and what is copied beside them, and the document of it all.

    A damaged layer is refused before the rest is copied: that may be a whole target.
    """
    layer = _layer(graft, folder, on_progress)
    sides: dict[str, Checkpoint] = {"target": graft.files.folder, "layer": layer}
    own = _of_layer(graft, layer)
    copies = [*own, *beside]
    found = assembling.copied(folder, sides, copies, on_progress, steps=slice(len(own)))
    digests = {name: found[at(shard.file, name)] for shard in graft.shards for name in shard.starts}
    _refuse_damage(graft, digests)
    assembling.copied(folder, sides, copies, on_progress, steps=slice(len(own), None))
    document = record(graft.addition, digests)
    folder.write_file(mark, assembling.document(document))
    return document


def record(addition: Addition, digests: Mapping[str, str]) -> dict[str, object]:
    """The document of a graft and of a delta: nothing that differs between two machines."""
    return {
        "schema": SCHEMA,
        "mtpforge": mtpforge.__version__,
        "engine": addition.engine,
        "target": {"id": addition.target, "content": addition.content, "stated": addition.stated.get("target", [])},
        "layer": {
            "id": addition.layer_of,
            "number": addition.number,
            "n_experts": addition.n_experts,
            "scales": addition.scales,
            "stated": addition.stated.get("layer", []),
        },
        "scheme": addition.scheme,
        "config": asdict(addition.config),
        "side_file": asdict(addition.side) if addition.side is not None else "goes" if addition.side_goes else None,
        "tensors": {
            name: {"dtype": spec.dtype, "shape": spec.shape, "sha256": digests[name]}
            for name, spec in sorted(addition.tensors.items())
        },
    }


def _small_files(graft: Graft) -> dict[str, bytes]:
    """Everything small that is the graft's own."""
    home, addition = graft.files.folder, graft.addition
    found = {metadata.INDEX: graft.index, metadata.CONFIG: patches.document(addition.config.applied(home.config))}
    side = home.small_file(metadata.SIDE_FILE)
    if addition.side is not None and side is not None:
        found[metadata.SIDE_FILE] = patches.document(addition.side.applied(json.loads(side)))
    return found | dict(addition.documents)


def _layer(graft: Graft, folder: DraftFolder, on_progress: OnProgress | None) -> Checkpoint:
    """What the layer is read from; a draft that has to be made first lies in the hidden folder, until the graft is."""
    job = graft.layer.job
    if job is None:
        graft.layer.checkpoint.fetch(graft.layer.refs.values(), on_progress)
        return graft.layer.checkpoint
    place = folder.path.parent / "layer"
    with suppress(MtpforgeError):  # none yet, or a damaged one
        made = find(open_folder(place))
        if made is not None and made.plan == job.plan.digest:
            return open_folder(place)
    from mtpforge.drafting.making import make as build  # torch

    return open_folder(build(replace(job, out=place), on_progress).path)


def _of_layer(graft: Graft, layer: Checkpoint) -> list[Copy]:
    names = {plain(name): name for name in graft.addition.tensors}
    refs = graft.layer.refs or layer.locate(names)
    files = {name: shard.file for shard in graft.shards for name in shard.starts}
    return [Copy("layer", refs[n], at(files[spelled], spelled)) for n, spelled in names.items()]


def _refuse_damage(graft: Graft, digests: Mapping[str, str]) -> None:
    """MtpforgeError for tensors that are not what the document beside them says: nobody could tell it of the graft."""
    wrong = sorted(name for name, stated in graft.stated.items() if digests[name] != stated)
    if wrong:
        of, again = ("delta", "fetch the delta again") if graft.asked.delta else ("layer", damage.AGAIN)
        raise damage.changed(of, graft.layer.checkpoint, wrong, again)
