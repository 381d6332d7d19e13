"""make(): a decided graft on disk, whole or not at all: links, shards that lose tensors, shards of the layer.

Every byte that is written passes `writing`: a hidden folder, a journal of finished tensors, one rename. An interrupted
graft goes on where it stopped; the target and what the layer comes from are only read.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import mtpforge
from mtpforge import errors
from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.folder import open_folder
from mtpforge.checkpoint.tensor_names import plain
from mtpforge.errors import MtpforgeError, shown
from mtpforge.manifest import find
from mtpforge.publishing import patches
from mtpforge.publishing.grafting import Addition, Graft
from mtpforge.publishing.target_files import Shard
from mtpforge.report import OnProgress, Progress, Report
from mtpforge.tensors import Spec, TensorRef
from mtpforge.writing import preflight
from mtpforge.writing.folder import DELTA, GRAFT, DraftFolder, kept_steps, refuse_existing
from mtpforge.writing.layout import INDEX, ShardLayout

Judge: TypeAlias = Callable[[Path], Report]
SCHEMA: Final = 1
_PIECE_BYTES: Final = 8 << 20
_STEP_BYTES: Final = 64 << 20  # of a file that is copied whole
_BYTES: Final = "U8"
_NAMED: Final = 5
_NO_LINK: Final = frozenset((errno.EPERM, errno.EXDEV, errno.EMLINK))


@dataclass(frozen=True, slots=True)
class _Copy:
    """Bytes on their way: from which checkpoint and where in it, to which key of the folder."""

    origin: str
    ref: TensorRef
    key: str


@dataclass(frozen=True, slots=True)
class Made:
    """A finished graft or delta, and what was proved of it."""

    path: Path
    document: Mapping[str, object]
    report: Report


def refuse(graft: Graft, mark: str = GRAFT) -> None:
    """MtpforgeError for an output that cannot be made where it is asked for, or not in this way of linking."""
    inputs = {"target": graft.files.folder, "layer": graft.layer.checkpoint}
    preflight.refuse_output(inputs, graft.out, mark=mark)
    preflight.refuse_unwritable(graft.out)
    refuse_existing(graft.out, force=graft.asked.force, mark=mark)
    if mark == GRAFT and graft.asked.link == "hard":
        _refuse_other_disk(graft)
    n_bytes = graft.written_bytes if mark == GRAFT else sum(layout.n_bytes for layout in graft.shards)
    preflight.refuse_small(n_bytes, graft.out)


def _refuse_other_disk(graft: Graft) -> None:
    home = next(folder for folder in graft.out.absolute().parents if folder.exists())
    far = next((path for path in graft.linked.values() if path.stat().st_dev != home.stat().st_dev), None)
    if far is not None:
        raise MtpforgeError(
            "hard links do not reach from one file system to another",
            where=shown(graft.out),
            why=f"`{shown(far)}` lies on another one",
            fix="`--link sym`, or an output on the target's disk with `--out`",
            code=errors.MACHINE,
        )


def make(graft: Graft, judge: Judge, on_progress: OnProgress | None = None) -> Made:
    """The graft, at its place; judged before it gets its name. An interrupted one goes on where it stopped."""
    is_copied = graft.asked.link == "copy"
    copied = _whole_files(graft) if is_copied else ()
    layouts = (*map(_keyed, graft.shards), *(_keyed(layout) for _, layout in graft.kept), *(s for s, _ in copied))

    def copies(layer: Checkpoint) -> list[_Copy]:
        of_kept = [copy for shard, layout in graft.kept for copy in _of_shard(shard, layout)]
        return [*_of_layer(graft, layer), *of_kept, *(copy for _, found in copied for copy in found)]

    def finish(folder: DraftFolder) -> Report:
        for name, place in graft.linked.items() if not is_copied else ():
            with _hinted():
                folder.link(name, place, hard=graft.asked.link == "hard")
        for name, data in _small_files(graft).items():
            folder.write_file(name, data)
        return judge(folder.path)

    return _written(graft, GRAFT, layouts, copies, finish, on_progress)


def make_delta(graft: Graft, on_progress: OnProgress | None = None) -> Made:
    """What the graft adds, without the target: shards of the layer, patches, and what they may be applied to."""

    def finish(folder: DraftFolder) -> Report:
        for name, data in graft.addition.documents.items():
            folder.write_file(name, data)
        return Report("delta", ())

    layouts = tuple(map(_keyed, graft.shards))
    return _written(graft, DELTA, layouts, lambda layer: _of_layer(graft, layer), finish, on_progress)


def _written(
    graft: Graft,
    mark: str,
    layouts: tuple[ShardLayout, ...],
    copies: Callable[[Checkpoint], list[_Copy]],
    finish: Callable[[DraftFolder], Report],
    on_progress: OnProgress | None,
) -> Made:
    refuse(graft, mark)
    out, target = graft.out.absolute(), graft.addition.target
    folder = DraftFolder(out, _key(graft, layouts), layouts, target=target, force=graft.asked.force, mark=mark)
    try:
        layer = _layer(graft, folder, on_progress)
        digests = _copied(graft, folder, layer, copies(layer), on_progress)
        _refuse_damage(graft, digests)
        folder.flush()
        document = record(graft.addition, digests)
        folder.write_file(mark, _document(document))
        report = _accepted(finish(folder), mark)
        folder.commit()
    except KeyboardInterrupt as stop:
        keep = folder.has_progress
        folder.abandon(keep=keep)
        fix = "the same command goes on from there" if keep else ""
        raise MtpforgeError("interrupted", why=kept_steps(out), fix=fix, code=errors.INTERRUPTED) from stop
    except MtpforgeError as error:
        folder.abandon(keep=folder.has_progress and error.code in {errors.MACHINE, errors.REMOTE})
        raise
    except BaseException:
        folder.abandon(keep=folder.has_progress)
        raise
    return Made(out, document, report)


def record(addition: Addition, digests: Mapping[str, str]) -> dict[str, object]:
    """The document of a graft and of a delta: nothing that differs between two machines."""
    return {
        "schema": SCHEMA,
        "mtpforge": mtpforge.__version__,
        "engine": addition.engine,
        "target": {"id": addition.target, "content": addition.content},
        "layer": {"id": addition.layer_of, "number": addition.number, "n_experts": addition.n_experts},
        "scheme": addition.scheme,
        "config": asdict(addition.config),
        "side_file": asdict(addition.side) if addition.side is not None else "goes" if addition.side_goes else None,
        "tensors": {
            name: {"dtype": spec.dtype, "shape": spec.shape, "sha256": digests[name]}
            for name, spec in sorted(addition.tensors.items())
        },
    }


def _document(body: Mapping[str, object]) -> bytes:
    return (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()


def _small_files(graft: Graft) -> dict[str, bytes]:
    """Everything small that is the graft's own."""
    home, addition = graft.files.folder, graft.addition
    found = {INDEX: graft.index, metadata.CONFIG: patches.document(addition.config.applied(home.config))}
    side = home.small_file(metadata.SIDE_FILE)
    if addition.side is not None and side is not None:
        found[metadata.SIDE_FILE] = patches.document(addition.side.applied(json.loads(side)))
    return found | dict(addition.documents)


def _key(graft: Graft, layouts: tuple[ShardLayout, ...]) -> str:
    """What an earlier run must share for its bytes to be used."""
    job = graft.layer.job
    sides = (graft.addition.content, graft.layer.checkpoint.identity, job.plan.digest if job else "")
    digest = hashlib.sha256("\0".join(sides).encode())
    for layout in layouts:
        digest.update(layout.file.encode() + b"\0" + layout.header)
    return digest.hexdigest()


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


def _keyed(layout: ShardLayout) -> ShardLayout:
    """The layout under keys that name the file too: a tensor may lie in several."""
    return replace(layout, starts={_at(layout.file, name): start for name, start in layout.starts.items()})


def _at(file: str, name: str) -> str:
    return f"{file}/{name}"


def _of_shard(shard: Shard, layout: ShardLayout) -> Iterator[_Copy]:
    for t in shard.tensors:
        ref = TensorRef(t.name, Spec(t.dtype, t.shape), layout.file, t.start, t.stop, "target")
        yield _Copy("target", ref, _at(layout.file, ref.name))


def _of_layer(graft: Graft, layer: Checkpoint) -> list[_Copy]:
    names = {plain(name): name for name in graft.addition.tensors}
    refs = graft.layer.refs or layer.locate(names)
    files = {name: shard.file for shard in graft.shards for name in shard.starts}
    return [_Copy("layer", refs[n], _at(files[spelled], spelled)) for n, spelled in names.items()]


def _whole_files(graft: Graft) -> tuple[tuple[ShardLayout, list[_Copy]], ...]:
    """Files that are copied as they lie, a stretch at a time."""
    found = []
    for name, path in graft.linked.items():
        size = path.stat().st_size
        starts = {_at(name, f"{at:015d}"): at for at in range(0, size, _STEP_BYTES)}
        refs = [_stretch(name, at, min(at + _STEP_BYTES, size)) for at in starts.values()]
        copies = [_Copy("target", ref, key) for key, ref in zip(starts, refs, strict=True)]
        found.append((ShardLayout(name, b"", starts, size), copies))
    return tuple(found)


def _stretch(file: str, start: int, stop: int) -> TensorRef:
    return TensorRef(file, Spec(_BYTES, (stop - start,)), file, start, stop, "target")


def _copied(
    graft: Graft, folder: DraftFolder, layer: Checkpoint, copies: list[_Copy], on_progress: OnProgress | None
) -> dict[str, str]:
    """Every tensor where it belongs; name in the graft -> sha256 of those of the layer."""
    sides: dict[str, Checkpoint] = {"target": graft.files.folder, "layer": layer}
    total, done, digests = sum(c.ref.stop - c.ref.start for c in copies), 0, {}
    buffer = bytearray(_PIECE_BYTES)
    for step, copy in enumerate(copies):
        n_bytes = copy.ref.stop - copy.ref.start
        before = folder.finished.get(step, {}).get(copy.key)
        if before is None or folder.sha256(copy.key, copy.ref.spec) != before:
            before = _copy(sides[copy.origin], copy, folder, buffer)
            folder.finish(step, {copy.key: before}, n_bytes)
        if copy.origin == "layer":
            digests[copy.key.partition("/")[2]] = before
        done += n_bytes
        if on_progress is not None:
            on_progress(Progress("graft", done, total))
    return digests


def _copy(side: Checkpoint, copy: _Copy, folder: DraftFolder, buffer: bytearray) -> str:
    digest = hashlib.sha256()
    for at in range(copy.ref.start, copy.ref.stop, _PIECE_BYTES):
        stop = min(at + _PIECE_BYTES, copy.ref.stop)
        piece = memoryview(buffer)[: stop - at]
        side.read(replace(copy.ref, start=at, stop=stop), piece)
        digest.update(piece)
        folder.put(copy.key, at - copy.ref.start, piece)
    return digest.hexdigest()


def _refuse_damage(graft: Graft, digests: Mapping[str, str]) -> None:
    """MtpforgeError for tensors of a delta that are not what its document says."""
    wrong = sorted(name for name, stated in graft.stated.items() if digests[name] != stated)
    if wrong:
        raise MtpforgeError(
            f"{len(wrong)} tensors of the delta changed since it was made",
            where=shown(graft.layer.checkpoint.location),
            why=f"the first is {shown(wrong[0])}: its sha256 is another",
            fix="fetch the delta again",
        )


@contextmanager
def _hinted() -> Iterator[None]:
    """What a system says that refuses a hard link, with the way around it."""
    try:
        yield
    except MtpforgeError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_LINK:
            error.fix = "`--link sym` makes symbolic links, `--link copy` copies"
        raise


def _accepted(report: Report, mark: str) -> Report:
    """The report; MtpforgeError for one that says no."""
    if report.ok:
        return report
    failed = [f"{c.name}: {c.detail}" for c in report.checks if c.verdict == "failed"]
    failed += [trap.message for trap in report.traps if trap.severity == "error"]
    raise MtpforgeError(
        f"the {'graft' if mark == GRAFT else 'delta'} did not pass its own verification, so it was not published",
        why="; ".join(failed[:_NAMED]) + (f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""),
        code=errors.ANSWER_NO,
    )
