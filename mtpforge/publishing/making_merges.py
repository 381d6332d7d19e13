"""make(): a decided merge on disk, whole or not at all: links, shards of what is taken; judged before it appears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import mtpforge
from mtpforge.checkpoint import metadata
from mtpforge.engines import DEFAULT
from mtpforge.publishing import assembling, patches
from mtpforge.publishing.assembling import SCHEMA, Copy, Made
from mtpforge.publishing.judging_merges import judge
from mtpforge.publishing.merging import Merge
from mtpforge.report import OnProgress, Report
from mtpforge.writing import preflight
from mtpforge.writing.folder import MERGE, DraftFolder, kind, refuse_existing
from mtpforge.writing.layout import ShardLayout


def refuse(merge: Merge) -> None:
    """MtpforgeError for an output that cannot be made where it is asked for, or not in this way of linking."""
    inputs = {("base" if not i else f"take {i}"): side.files.folder for i, side in enumerate(merge.sides)}
    preflight.refuse_output(inputs, merge.out, mark=MERGE)
    preflight.refuse_unwritable(merge.out, kind(MERGE))
    refuse_existing(merge.out, force=merge.asked.force, mark=MERGE)
    if merge.asked.link == "hard":
        assembling.refuse_other_disk(merge.linked, merge.out)
    copied = merge.linked.values() if merge.asked.link == "copy" else ()
    written = sum(layout.n_bytes for _, _, layout in merge.rewritten)
    preflight.refuse_small(written + sum(path.stat().st_size for path in copied), merge.out)


def make(merge: Merge, on_progress: OnProgress | None = None) -> Made:
    """The merged folder, whole or not at all."""
    refuse(merge)
    is_copied = merge.asked.link == "copy"
    copies: list[Copy] = []
    for i, shard, layout in merge.rewritten:
        copies += assembling.of_shard(str(i), shard, layout)
    whole = _whole(merge) if is_copied else ()
    copies += [copy for _, found in whole for copy in found]
    layouts = (*(layout for _, _, layout in merge.rewritten), *(layout for layout, _ in whole))
    base = merge.sides[0].files.folder
    document = {
        "schema": SCHEMA,
        "mtpforge": mtpforge.__version__,
        "engine": DEFAULT,
        "base": {"id": base.identity},
        "takes": [
            {"pattern": pattern, "id": side.files.folder.identity, "modules": merge.taken[pattern]}
            for (pattern, _), side in zip(merge.asked.takes, merge.sides[1:], strict=True)
        ],
        "config": asdict(merge.patch),
    }

    def fill(folder: DraftFolder) -> tuple[Mapping[str, object], Report]:
        assembling.copied(
            folder, {str(i): side.files.folder for i, side in enumerate(merge.sides)}, copies, on_progress
        )
        if not is_copied:
            assembling.link(folder, merge.linked, hard=merge.asked.link == "hard")
        folder.write_file(metadata.CONFIG, patches.document(merge.patch.applied(base.config)))
        folder.write_file(metadata.INDEX, merge.index)
        folder.write_file(MERGE, assembling.document(document))
        return document, judge(merge, folder.path)

    sides = [side.files.content for side in merge.sides]
    where = assembling.Place(merge.out.absolute(), MERGE, base.identity, sides, merge.asked.force)
    return assembling.written(where, layouts, fill)


def _whole(merge: Merge) -> tuple[tuple[ShardLayout, list[Copy]], ...]:
    """Files that are copied as they lie, each read under the name that it has in its own folder."""
    found: dict[str, tuple[ShardLayout, list[Copy]]] = {}
    for i, side in enumerate(merge.sides):
        names = {path: name for name, path in side.files.places.items()}
        for name, path in merge.linked.items():
            if path in names and name not in found:
                ((layout, copies),) = assembling.whole_files(str(i), {names[path]: path})
                keys = zip(copies, layout.starts, strict=True)
                renamed = [Copy(c.origin, c.ref, assembling.at(name, key)) for c, key in keys]
                found[name] = ShardLayout(name, b"", layout.starts, layout.n_bytes), renamed
    return tuple(found.values())
