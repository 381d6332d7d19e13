"""DraftFolder: a draft in the making. Hidden until it is whole; what a crash leaves behind is used or removed.

Order of a build, and what each step is for:
 1. lock the hidden folder                      two builds to one output would mix
 2. put back what an interrupted --force left   the old draft is never lost
 3. refuse an existing output                   before anything is read
 4. allocate the weight files, write headers    a full disk shows now
 5. tensors at their offsets, in any order; every batch: fsync data, then the journal line, then fsync the journal
 6. small files; fsync every file and the folder
 7. one rename, which again refuses an existing output; fsync the parent
 8. remove the hidden folder

What it cannot promise: a drive that confirms a flush that it did not do.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from mtpforge import errors
from mtpforge.checkpoint import metadata
from mtpforge.durable import effects, files
from mtpforge.errors import MtpforgeError, shown
from mtpforge.tensors import Spec
from mtpforge.writing import claim as claims
from mtpforge.writing import journal
from mtpforge.writing.layout import ShardLayout

# A batch costs one flush of the data and one of the journal; at most this much is written again after a crash.
BATCH_BYTES: Final = 256 << 20
_STEP_BYTES: Final = 1 << 20
MANIFEST: Final = metadata.MANIFEST
GRAFT: Final = metadata.GRAFT
MERGE: Final = metadata.MERGE
DELTA: Final = metadata.DELTA
OVERLAY: Final = metadata.OVERLAY
# The file that tells a folder of ours, so that no other is replaced: what the folder is, which option chooses another.
_KINDS: Final = {
    MANIFEST: ("draft", "--out"),
    GRAFT: ("graft", "--out"),
    DELTA: ("delta", "--out"),
    MERGE: ("merge", "--out"),
    OVERLAY: ("overlay", "--overlay"),
}

_APPEARED: Final = "it was not there when this build was planned: another build wrote it meanwhile"

_log = logging.getLogger(__name__)


class DraftFolder:
    """A draft that is being written. Thread-safe; `finished` holds the steps of an earlier run of the same plan."""

    def __init__(
        self,
        out: Path,
        key: str,
        layouts: tuple[ShardLayout, ...],
        *,
        target: str = "",
        force: bool = False,
        mark: str = MANIFEST,
    ) -> None:
        """Claim `out` and prepare its files. An existing output is an error without `force`, as is a held lock.

        target: identity of what the draft is for. mark: the file by which `force` tells a folder of ours.
        """
        self._force, self._mark, self._layouts = force, mark, layouts
        self._files = {layout.file: -1 for layout in layouts}
        self._homes = {name: (layout.file, start) for layout in layouts for name, start in layout.starts.items()}
        self._pending: journal.Finished = {}
        self._pending_bytes = 0
        self._failure: OSError | None = None  # of a flush; see there
        self._pending_lock, self._flush_lock = threading.Lock(), threading.Lock()
        self._journal = -1
        self._is_open = True
        self.finished: journal.Finished = {}
        self._claim = claims.take(out, kind(mark))
        try:
            with self._on_disk(out):
                self._recover()
                refuse_existing(out, force=force, why=_APPEARED, mark=mark)
                self._open(key, target)
        except BaseException:
            self.abandon(keep=self._claim.journal.exists() and self._claim.draft.is_dir())
            raise

    @property
    def path(self) -> Path:
        """The hidden folder that holds the draft's files until `commit`."""
        return self._claim.draft

    @property
    def has_progress(self) -> bool:
        """Whether a step is finished that the same command would not have to repeat."""
        return bool(self.finished or self._pending)

    def put(self, name: str, offset: int, data: memoryview) -> None:
        """Write bytes of a tensor at an offset from its start."""
        file, start = self._homes[name]
        with self._on_disk(self.path / file):
            effects.put(self._files[file], data, start + offset)

    def sha256(self, name: str, spec: Spec) -> str:
        """Digest of a tensor as it lies in the file now."""
        digest = hashlib.sha256()
        for piece in self._pieces(name, spec.n_bytes):
            digest.update(piece)
        return digest.hexdigest()

    def finish(self, step: int, digests: Mapping[str, str], n_bytes: int) -> None:
        """Remember that every tensor of a step is written; a full batch goes to the journal."""
        with self._pending_lock:
            self._pending[step] = dict(digests)
            self._pending_bytes += n_bytes
            is_full = self._pending_bytes >= BATCH_BYTES
        if is_full:
            self.flush()

    def _on_disk(self, where: Path) -> AbstractContextManager[None]:
        return claims.on_disk(where, kind(self._mark))

    def flush(self) -> None:
        """Make finished steps durable: the data first, then the lines that speak of it.

        After a failure no later flush of this process succeeds: the system reports lost pages to one fsync only, so the
        next one would vouch for them; and a line that was cut short would hide those behind it.
        """
        with self._flush_lock, self._on_disk(self.path):
            if self._failure:
                raise self._failure
            with self._pending_lock:
                batch, self._pending, self._pending_bytes = self._pending, {}, 0
            if not batch:
                return
            try:
                for fd in self._files.values():
                    effects.sync(fd)
                effects.append(self._journal, journal.lines(batch))
                effects.sync(self._journal)
            except OSError as failure:
                self._failure = failure
                raise
            self.finished |= batch

    def write_file(self, name: str, data: bytes) -> None:
        """A small file of the draft, whole and durable."""
        if Path(name).name != name or name in self._files:
            raise ValueError(f"no name of a small file: {name!r}")
        with self._on_disk(self.path / name):
            files.write(self.path / name, data)

    def link(self, name: str, place: Path, *, hard: bool) -> None:
        """A file of somebody else under a name in the draft: its bytes are where they were."""
        with self._on_disk(self.path / name):
            effects.link(place, self.path / name, hard=hard)

    def commit(self) -> None:
        """Make the draft appear under its name, whole; afterwards nothing of the hidden folder is left."""
        out = self._claim.out
        self.flush()
        with self._on_disk(out):
            for fd in self._files.values():
                effects.sync(fd)
            files.sync_names(self.path)
            refuse_existing(out, force=self._force, why=_APPEARED, mark=self._mark)
            try:
                effects.publish(self.path, out, self._claim.replaced if self._force else None)
            except FileExistsError:
                refuse_existing(out, force=False, why=_APPEARED, mark=self._mark)
                raise
            files.sync_names(out.parent)
            self.abandon(keep=False)

    def abandon(self, *, keep: bool) -> None:
        """Close everything; `keep` leaves the hidden folder for the same command to go on with."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            if keep and self._failure is None:
                self.flush()
        finally:
            for fd in (*self._files.values(), self._journal):
                if fd >= 0:
                    os.close(fd)
            claims.release(self._claim, keep=keep)

    def _recover(self) -> None:
        """Undo a --force that stopped between its two renames."""
        claim = self._claim
        if claim.replaced.exists() and not os.path.lexists(claim.out):
            claim.replaced.rename(claim.out)
        files.remove(claim.replaced)

    def _open(self, key: str, target: str) -> None:
        claim = self._claim
        earlier = journal.load(claim.journal, key, target)
        if earlier is None:
            _log.debug("starting afresh in %s", claim.folder)
            files.remove(claim.journal)
            files.remove(claim.draft)
        claim.draft.mkdir(exist_ok=True)
        _remove_strangers(claim.draft, frozenset(self._files))
        for layout in self._layouts:
            fd = self._files[layout.file] = effects.allocate(claim.draft / layout.file, layout.n_bytes)
            effects.put(fd, memoryview(layout.header), 0)
        files.sync_names(claim.draft)
        if earlier is None:
            self._journal = journal.start(claim.journal, key, target)
        else:
            self.finished, n_bytes = earlier
            self._journal = journal.resume(claim.journal, n_bytes)
            effects.sync(
                self._journal
            )  # a process killed between line and sync leaves lines that a power cut takes back
            _log.debug("resuming in %s: %d steps", claim.folder, len(self.finished))
        files.sync_names(claim.folder)  # also when resuming: the run before may have died between name and sync

    def _pieces(self, name: str, n_bytes: int) -> Iterator[bytes]:
        file, start = self._homes[name]
        for at in range(0, n_bytes, _STEP_BYTES):
            with self._on_disk(self.path / file):
                yield os.pread(self._files[file], min(_STEP_BYTES, n_bytes - at), start + at)


def room(out: Path) -> int:
    """Bytes free for this output: what its disk has left, and what an interrupted build of it holds already."""
    home = next(folder for folder in (out.parent, *out.parent.absolute().parents) if folder.exists())
    with claims.on_disk(home):
        disk = os.statvfs(home)
        held = claims.hidden_folder(out) / "draft"
        reserved = sum(f.lstat().st_blocks * 512 for f in held.iterdir()) if held.is_dir() else 0
    return disk.f_bavail * disk.f_frsize + reserved


def kept_steps(out: Path) -> str:
    """What an interrupted build of this output has left for the next run, as a sentence."""
    n_steps = journal.n_steps(claims.hidden_folder(out) / "journal")
    folder = shown(claims.hidden_folder(out))
    return f"{n_steps:,} finished steps are kept in {folder}" if n_steps else "no step was finished, nothing is kept"


def unfinished_target(out: Path) -> str:
    """Identity of the target that an unfinished build of this output is for; "" where there is none."""
    return journal.target_of(claims.hidden_folder(out) / "journal")


def kind(mark: str) -> str:
    """What a folder is that this file tells."""
    return _KINDS[mark][0]


def option(mark: str) -> str:
    """The option that chooses where a folder lies that this file tells."""
    return _KINDS[mark][1]


def refuse_existing(out: Path, *, force: bool, why: str = "", mark: str = MANIFEST) -> None:
    """Raise where `out` is taken: always without `force`, with it where no draft of ours lies there.

    why: how it can be there, where it was not before. mark: the file by which a folder of ours is told.
    """
    if not os.path.lexists(out):
        return
    what, chooses = _KINDS[mark]
    if not out.is_dir() or (any(out.iterdir()) and not (out / mark).is_file()):
        raise MtpforgeError(
            f"the output exists and is no {what}",
            where=shown(out),
            why=f"only folders that hold {mark} are replaced",
            fix=f"remove it yourself, or choose another output with `{chooses}`",
            code=errors.MACHINE,
        )
    if not force:
        is_empty = not any(out.iterdir())
        raise MtpforgeError(
            "the output exists already",
            where=shown(out),
            why=why or (f"it is an empty folder, whose place the {what} would take" if is_empty else ""),
            fix=f"`--force` replaces it, `{chooses}` chooses another",
            code=errors.MACHINE,
        )


def _remove_strangers(folder: Path, ours: frozenset[str]) -> None:
    """After an exchange that was not cleaned up, the old draft lies here: nothing of it may travel with the new one."""
    for entry in folder.iterdir():
        if entry.name not in ours or entry.is_symlink() or not entry.is_file() or entry.stat().st_nlink > 1:
            files.remove(entry)
