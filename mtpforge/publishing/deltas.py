"""A delta: what a graft adds, without the target. Small enough to publish, and applied to one revision alone.

    mtpforge-delta.json          what it applies to, patches of the configs, dtype, shape and hash of each tensor
    model-mtp.safetensors, ...   the layer, as it lies in the graft
    mtp-LICENSE, ...             licences of what the layer comes from

With the target it gives the graft that it was made beside, byte for byte. Of one that an older version made, the
quantization block in config.json also says what engines were not told of then.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from mtpforge import errors
from mtpforge.checkpoint import header, metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of, place_in
from mtpforge.checkpoint.folder import Folder
from mtpforge.checkpoint.folder_files import Files
from mtpforge.checkpoint.json_fields import Fields, load
from mtpforge.checkpoint.tensor_names import plain
from mtpforge.drafting.request import Watching
from mtpforge.engines import choices, engine_of
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.publishing import patches
from mtpforge.publishing.assembling import SCHEMA
from mtpforge.publishing.graft import LAYER_FILE, Addition, Asked, Graft, Layer, laid_out
from mtpforge.publishing.grafting import opened
from mtpforge.publishing.patches import Patch
from mtpforge.publishing.side_file import BLOCK as _BLOCK
from mtpforge.publishing.side_file import side_file
from mtpforge.publishing.target_files import TargetFiles, target_files
from mtpforge.report import Trap
from mtpforge.tensors import Spec
from mtpforge.writing.folder import DELTA
from mtpforge.writing.layout import ShardLayout

_GOES = "goes"
_MARK = "mtp-"


def decide(asked: Asked, watching: Watching | None = None) -> Graft:
    """The graft of a delta into the target that it was made for. MtpforgeError for any other target."""
    folder, document = _document(asked)
    where = place_in(folder, DELTA)
    engine = document.text("engine")
    if engine not in choices():
        raise _damaged(where, f"no engine is called {shown(engine)}")
    target, family = opened(asked, engine_of(engine), watching or Watching.by(None, None))
    files = target_files(target, engine_of(engine))
    made_for = document.within("target") or document.refuse("target", "an object")
    if files.content != made_for.text("content"):
        raise _other_target(target.label, files, made_for)
    addition, stated = _addition(folder, document, where)
    addition = _with_side(replace(addition, config=_config(addition, target, where)), target)
    _refuse_foreign(folder, addition, family.layer(target.config), where)
    shards = tuple(_layout(folder, file) for file in folder.weight_files)
    refs = folder.locate(plain(name) for name in addition.tensors)
    found: tuple[Trap, ...] = ()
    graft = laid_out(asked, files, addition, Layer(folder, refs), shards, found)
    return replace(graft, stated=stated)


def _config(addition: Addition, target: Checkpoint, where: Where) -> Patch:
    """What it changes in config.json. MtpforgeError for a delta that changes more than a graft does: anybody's may.

    That follows from the target and the quantization block alone, so it is made again, and the block is taken as made:
    a delta of an older version lacks in it what the engine has to be told.
    """
    patch, told = addition.config, target
    block = patch.set.get(_BLOCK, {})
    if _BLOCK in patch.set or _BLOCK in patch.remove:
        told = target.restated(block if isinstance(block, dict) else {})
    try:
        made = patches.difference(target.config, engine_of(addition.engine).carrying_config(told))
    except MtpforgeError as error:
        if told is target:
            raise
        raise _foreign(where, f"its patch: {': '.join(filter(None, (error.what, error.why)))}") from error
    if _BLOCK in made.set and isinstance(block, dict):
        patch = replace(patch, set=patch.set | {_BLOCK: made.set[_BLOCK]})
    if made != patch:
        raise _foreign(where, "it changes keys of config.json that no graft changes")
    return patch


def _with_side(addition: Addition, target: Checkpoint) -> Addition:
    """ModelOpt's side file as the block is: one of an older version may lack what the engine has to be told."""
    if addition.side_goes:
        return addition
    block, side = addition.config.set.get(_BLOCK), addition.side
    told = target.restated(block) if isinstance(block, dict) else target
    patch, goes = side_file(target, told, engine_of(addition.engine), lambda s: s if side is None else side.applied(s))
    return replace(addition, side=patch, side_goes=goes)


def _refuse_foreign(folder: Folder, addition: Addition, layer: int, where: Where) -> None:
    """MtpforgeError for a delta of other tensors than a graft adds."""
    if addition.number != layer:
        raise _foreign(where, f"it would replace layer {addition.number}; the MTP layer is {layer}")
    if odd := [file for file in folder.weight_files if not file.startswith(LAYER_FILE)]:
        raise _foreign(where, f"a graft writes no `{shown(odd[0])}`")


def _foreign(where: Where, why: str) -> MtpforgeError:
    return MtpforgeError(
        "this delta is none that a graft makes", where=where, why=why, fix="do not apply it; ask whoever published it"
    )


def _document(asked: Asked) -> tuple[Folder, Fields]:
    path = Path(os.path.expanduser(str(asked.delta)))  # noqa: PTH111 -- Path's raises where nobody is called so
    if not os.path.isfile(path / DELTA):  # noqa: PTH113 -- Path's raises for a name that is too long
        raise MtpforgeError(
            f"`{shown(path)}` is no delta",
            where=shown(path.absolute()),
            why=f"it holds no {DELTA}",
            fix="`mtpforge delta DRAFT --against TARGET -o DIR` makes one",
        )
    folder = Folder(path, str(path), config={})
    with errors_of(folder):
        document = load(folder.small_file(DELTA) or b"", DELTA)
    if document.values.get("schema") != SCHEMA:
        raise MtpforgeError(
            f"{DELTA} has schema {shown(document.values.get('schema'))}, this mtpforge reads {SCHEMA}",
            where=place_in(folder, DELTA),
            fix="update: `pip install -U mtpforge`",
        )
    return folder, document


def _other_target(label: str, files: TargetFiles, made_for: Fields) -> MtpforgeError:
    name, mark, _ = made_for.text("id").partition("#")  # a folder's name and its hash: where it lay is not recorded
    return MtpforgeError(
        f"this delta is not for `{shown(label)}`",
        where=shown(files.folder.location),
        why=f"it was made for {shown(made_for.text('id'))} with content {shown(made_for.text('content'))},"
        f" this target has {files.content}: another revision, or files that were changed since",
        fix=f"name the folder that it was made for, {shown(name)}"
        if mark
        else f"name that revision: `--into {shown(name)}`",
        code=errors.INPUT,
    )


def _addition(folder: Folder, document: Fields, where: Where) -> tuple[Addition, dict[str, str]]:
    """What it adds, and the sha256 of each tensor."""
    of, layer = document.within("target"), document.within("layer")
    tensors = document.within("tensors")
    if of is None or layer is None or tensors is None:
        raise _damaged(where, "it lacks `target`, `layer` or `tensors`")
    side = document.values.get("side_file")
    held = {name: ref for file in folder.weight_files for name, ref in _specs(folder, file).items()}
    if held.keys() != tensors.values.keys():
        raise _damaged(where, "it lists other tensors than its files hold")
    addition = Addition(
        engine=document.text("engine"),
        target=of.text("id"),
        content=of.text("content"),
        layer_of=layer.text("id"),
        number=layer.whole("number") or 0,
        scheme=document.text("scheme"),
        n_experts=layer.whole("n_experts") or 0,
        config=patches.read(document.values.get("config"), where),
        side=None if side is None or side == _GOES else patches.read(side, where),
        side_goes=side == _GOES,
        tensors=held,
        documents=_documents(folder),
        stated={
            side: rows
            for side, of in (("target", of), ("layer", layer))
            if isinstance(rows := of.values.get("stated"), list)
        },
        scales=layer.text("scales"),
    )
    return addition, {name: entry.text("sha256") for name, entry in tensors.objects()}


def _documents(folder: Folder) -> dict[str, bytes]:
    files = Files(Path(folder.location))
    marked = [name.removeprefix(_MARK) for name in files.names() if name.startswith(_MARK)]
    found = {f"{_MARK}{n}": files.whole(f"{_MARK}{n}", is_copied=True) or b"" for n in metadata.document_names(marked)}
    for name, data in found.items():
        metadata.refuse_large_document(name, len(data))
    return found


def _specs(folder: Folder, file: str) -> dict[str, Spec]:
    """Name as it is spelled -> Spec, in the order of the header."""
    raw = folder.raw_header(file)
    parsed = header.parse(raw, file, (Path(folder.location) / file).stat().st_size)
    return {name: parsed[plain(name)].spec for name in json.loads(raw) if name != header.METADATA}


def _layout(folder: Folder, file: str) -> ShardLayout:
    """A weight file as it lies."""
    raw, size = folder.raw_header(file), (Path(folder.location) / file).stat().st_size
    parsed = header.parse(raw, file, size)
    starts = {name: parsed[plain(name)].start for name in json.loads(raw) if name != header.METADATA}
    return ShardLayout(file, len(raw).to_bytes(header.LENGTH_BYTES, "little") + raw, starts, size)


def _damaged(where: Where, why: str) -> MtpforgeError:
    return MtpforgeError(f"{DELTA} is damaged", where=where, why=why, fix="fetch the delta again")
