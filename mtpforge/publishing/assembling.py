"""Folders out of other checkpoints' files: links, copies, shards without some tensors; whole or not at all.

Every byte that is written passes `writing`: a hidden folder, a journal of what is finished, one rename. Other
checkpoints are only read.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from mtpforge import errors
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError, shown
from mtpforge.publishing.target_files import Shard
from mtpforge.report import OnProgress, Progress, Report
from mtpforge.tensors import Spec, TensorRef
from mtpforge.writing.folder import DraftFolder, kept_steps, kind
from mtpforge.writing.layout import ShardLayout

SCHEMA: Final = 1  # of the documents that tell such folders
_PIECE_BYTES: Final = 8 << 20
_STEP_BYTES: Final = 64 << 20  # of a file that is copied whole
_BYTES: Final = "U8"
_NAMED: Final = 5
_NO_LINK: Final = frozenset((errno.EPERM, errno.EXDEV, errno.EMLINK))


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes on their way: from which checkpoint and where in it, to which key of the folder."""

    origin: str
    ref: TensorRef
    key: str


@dataclass(frozen=True, slots=True)
class Made:
    """A finished graft, delta or merge, and what was proved of it."""

    path: Path
    document: Mapping[str, object]
    report: Report


@dataclass(frozen=True, slots=True)
class Place:
    """Where a folder appears. mark: the file that tells it. target: what it is for. sides: what its bytes depend on."""

    out: Path
    mark: str
    target: str
    sides: Sequence[str]
    force: bool


# Fills the folder, all but its last rename: the document of its mark, and what was proved.
Fill: TypeAlias = Callable[[DraftFolder], tuple[Mapping[str, object], Report]]


def written(where: Place, layouts: Sequence[ShardLayout], fill: Fill) -> Made:
    """The folder at its place; a report that says no is an error with code 1, and nothing appears."""
    keyed = tuple(replace(la, starts={at(la.file, name): start for name, start in la.starts.items()}) for la in layouts)
    digest = hashlib.sha256("\0".join(where.sides).encode())
    for layout in keyed:
        digest.update(layout.file.encode() + b"\0" + layout.header)
    out, key = where.out, digest.hexdigest()
    folder = DraftFolder(out, key, keyed, target=where.target, force=where.force, mark=where.mark)
    try:
        document, report = fill(folder)
        _refuse_failed(report, where.mark)
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


def _refuse_failed(report: Report, mark: str) -> None:
    if report.ok:
        return
    failed = [f"{c.name}: {c.detail}" for c in report.checks if c.verdict == "failed"]
    failed += [trap.message for trap in report.traps if trap.severity == "error"]
    raise MtpforgeError(
        f"the {kind(mark)} did not pass its own verification, so it was not published",
        why="; ".join(failed[:_NAMED]) + (f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""),
        code=errors.ANSWER_NO,
    )


def document(body: Mapping[str, object]) -> bytes:
    """The bytes of a mark."""
    return (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()


def at(file: str, name: str) -> str:
    """The key of a tensor, which names its file too: a tensor may lie in several."""
    return f"{file}/{name}"


def of_shard(origin: str, shard: Shard, layout: ShardLayout) -> list[Copy]:
    """The tensors of a shard on their way into another file."""
    return [
        Copy(
            origin,
            TensorRef(t.name, Spec(t.dtype, t.shape), shard.file, t.start, t.stop, origin),
            at(layout.file, t.name),
        )
        for t in shard.tensors
    ]


def whole_files(origin: str, files: Mapping[str, Path]) -> tuple[tuple[ShardLayout, list[Copy]], ...]:
    """Files that are copied as they lie, a stretch at a time."""
    found = []
    for name, path in files.items():
        size = path.stat().st_size
        starts = {f"{first:015d}": first for first in range(0, size, _STEP_BYTES)}
        refs = [_stretch(origin, name, first, min(first + _STEP_BYTES, size)) for first in starts.values()]
        copies = [Copy(origin, ref, at(name, key)) for key, ref in zip(starts, refs, strict=True)]
        found.append((ShardLayout(name, b"", starts, size), copies))
    return tuple(found)


def _stretch(origin: str, file: str, start: int, stop: int) -> TensorRef:
    return TensorRef(file, Spec(_BYTES, (stop - start,)), file, start, stop, origin)


def copied(
    folder: DraftFolder,
    sides: Mapping[str, Checkpoint],
    copies: Sequence[Copy],
    on_progress: OnProgress | None,
    *,
    steps: slice = slice(None),
) -> dict[str, str]:
    """Every copy made, or found made by an earlier run, and durable: key -> sha256 of what was read.

    steps: which of them now; the others are another call's. What was written is read back: a difference is an error
    with code 5.
    """
    sizes = [c.ref.stop - c.ref.start for c in copies]
    now = range(len(copies))[steps]
    total, done, digests = sum(sizes), sum(sizes[: now.start]), dict[str, str]()
    buffer = bytearray(_PIECE_BYTES)
    for step in now:
        copy, n_bytes = copies[step], sizes[step]
        before = folder.finished.get(step, {}).get(copy.key)
        if before is None or folder.sha256(copy.key, copy.ref.spec) != before:
            before = _copy(sides[copy.origin], copy, folder, buffer)
            if folder.sha256(copy.key, copy.ref.spec) != before:
                raise MtpforgeError(
                    "what was written reads back otherwise",
                    where=shown(folder.path),
                    why=f"the sha256 of {shown(copy.ref.name)} is another: the disk or the memory damages bytes",
                    fix="choose another disk with `--out`",
                    code=errors.MACHINE,
                )
            folder.finish(step, {copy.key: before}, n_bytes)
        digests[copy.key] = before
        done += n_bytes
        if on_progress is not None:
            on_progress(Progress("graft", done, total))
    folder.flush()
    return digests


def _copy(side: Checkpoint, copy: Copy, folder: DraftFolder, buffer: bytearray) -> str:
    digest = hashlib.sha256()
    for start in range(copy.ref.start, copy.ref.stop, _PIECE_BYTES):
        stop = min(start + _PIECE_BYTES, copy.ref.stop)
        piece = memoryview(buffer)[: stop - start]
        side.read(replace(copy.ref, start=start, stop=stop), piece)
        digest.update(piece)
        folder.put(copy.key, start - copy.ref.start, piece)
    return digest.hexdigest()


def link(folder: DraftFolder, files: Mapping[str, Path], *, hard: bool) -> None:
    """Name -> the file behind all links that it leads to."""
    for name, path in files.items():
        with _hinted():
            folder.link(name, path, hard=hard)


@contextmanager
def _hinted() -> Iterator[None]:
    """What a system says that refuses a hard link, with the way around it."""
    try:
        yield
    except MtpforgeError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_LINK:
            error.fix = "`--link sym` makes symbolic links, `--link copy` copies"
        raise


def refuse_other_disk(files: Mapping[str, Path], out: Path) -> None:
    """MtpforgeError for hard links from one file system to another."""
    home = next(folder for folder in out.absolute().parents if folder.exists())
    far = next((path for path in files.values() if path.stat().st_dev != home.stat().st_dev), None)
    if far is not None:
        raise MtpforgeError(
            "hard links do not reach from one file system to another",
            where=shown(out),
            why=f"`{shown(far)}` lies on another one",
            fix="`--link sym`, or an output on the target's disk with `--out`",
            code=errors.MACHINE,
        )
