"""The range cache: remote files of which only some bytes are here.

    $MTPFORGE_CACHE/                         default $HF_HOME/mtpforge
      refs/<org--name>/<revision>            the commit that a branch or tag was last seen at
      ranges/<org--name>/<commit>/
        .repository.json                     names and sizes of the files at that commit
        model-00003.safetensors              sparse: as long as the remote file, same offsets, holes where nothing is
        model-00003.safetensors.ranges       journal: size and etag, then one line `start stop` per finished range

A range enters the journal after its bytes are on the disk (fdatasync), so whatever the journal names is there: killed
at any time, the next run fetches the rest. A line cut short by a crash is dropped, with everything after it. One
process at a time fetches into a file (flock on its journal); readers need no lock, because bytes never change.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from huggingface_hub import constants

from mtpforge import errors
from mtpforge.checkpoint.ranges import Range, coalesce, subtract
from mtpforge.errors import MtpforgeError, shown
from mtpforge.units import file_size

_LINE: Final = re.compile(rb"(\d{1,19}) (\d{1,19})\n")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def home() -> Path:
    """Where ranges are kept: $MTPFORGE_CACHE, else `mtpforge` beside the hub's own cache."""
    return Path(os.environ.get("MTPFORGE_CACHE") or Path(constants.HF_HOME) / "mtpforge").expanduser().absolute()


def commit_folder(repo: str, commit: str) -> Path:
    """The folder of one commit of a repository."""
    return home() / "ranges" / repo.replace("/", "--") / commit


def ref_file(repo: str, revision: str) -> Path:
    """The file that remembers which commit a branch or tag was last seen at."""
    return home() / "refs" / repo.replace("/", "--") / quote(revision, safe="")


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new one."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system refuses below into an error with exit code 5."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in _FULL
        raise MtpforgeError(
            "the download cache is full" if is_full else "the download cache cannot be used",
            where=shown(path),
            why=shown(error.strerror or error),
            fix="free some space there, or set `MTPFORGE_CACHE` to a folder on another disk; what is there is kept"
            if is_full
            else "make the folder writable, or set `MTPFORGE_CACHE` to another one",
            code=errors.MACHINE,
        ) from None


def refuse_full(folder: Path, n_bytes: int) -> None:
    """Raise unless the disk of the cache has room for so many more bytes."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise MtpforgeError(
            "the disk of the download cache is too small",
            where=shown(folder),
            why=f"{file_size(n_bytes)} are needed, {file_size(free)} are free",
            fix="free some space there, or set `MTPFORGE_CACHE` to a folder on another disk; what is there is kept",
            code=errors.MACHINE,
        )


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells two versions of a remote file apart: its size in bytes, and the etag."""

    n_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Journal:
    identity: Identity | None
    held: tuple[Range, ...]
    n_bytes: int  # of the journal, up to the first line that is not whole


class RangeFile:
    """One sparse file and its journal. Reading needs nothing; writing happens inside `filling`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal_path = path.with_name(f"{path.name}.ranges")
        self._lock = threading.Lock()
        self._seen: tuple[tuple[int, ...], _Journal] | None = None
        self._data = self._log = -1

    @property
    def identity(self) -> Identity | None:
        """Size and etag of the remote file; None when nothing of it is here."""
        return self._read().identity

    @property
    def held(self) -> tuple[Range, ...]:
        """The ranges that are here, ascending and disjoint."""
        return self._read().held

    def missing(self, wanted: Iterable[Range]) -> tuple[Range, ...]:
        """The bytes of `wanted` that are not here."""
        return subtract(wanted, self.held)

    def read(self, part: Range) -> bytes:
        """The bytes of a range that is here."""
        with self.path.open("rb", buffering=0) as file:
            raw = os.pread(file.fileno(), part.n_bytes, part.start)
        if len(raw) != part.n_bytes:
            raise OSError(errno.EIO, "the file is cut short", str(self.path))
        return raw

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the file alone: other processes, and other threads of this one, wait."""
        with disk_errors(self._journal_path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            log = os.open(self._journal_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with disk_errors(self._journal_path):
                fcntl.flock(log, fcntl.LOCK_EX)  # the kernel drops it with the process
            self._log = log
            yield
        finally:
            self._log = -1
            os.close(log)

    @contextlib.contextmanager
    def filling(self, identity: Identity) -> Iterator[None]:
        """Make ready for `put` and `finish`, inside `locked`. Bytes of another version of the file are dropped."""
        with disk_errors(self.path):
            journal = self._read()
            if journal.identity != identity:
                self._restart(identity)
            else:
                os.ftruncate(self._log, journal.n_bytes)
            self._data = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with disk_errors(self.path):
                os.ftruncate(self._data, identity.n_bytes)
            yield
        finally:
            os.close(self._data)
            self._data = -1

    def put(self, start: int, chunk: bytes) -> None:
        """Write bytes at their offset. Several threads may do so at once."""
        with disk_errors(self.path):
            written = 0
            while written < len(chunk):
                written += os.pwrite(self._data, memoryview(chunk)[written:], start + written)

    def finish(self, part: Range) -> None:
        """Make the bytes of a range durable, then write it down as here."""
        if not part.n_bytes:
            return
        with disk_errors(self.path):
            os.fdatasync(self._data)
            with self._lock:
                self._append(b"%d %d\n" % (part.start, part.stop))

    def _restart(self, identity: Identity) -> None:
        os.ftruncate(self._log, 0)
        os.fsync(self._log)  # first forget the ranges, then their bytes
        self.path.unlink(missing_ok=True)
        self._append(json.dumps({"bytes": identity.n_bytes, "etag": identity.etag}).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        end = os.fstat(self._log).st_size
        os.pwrite(self._log, line, end)
        os.fsync(self._log)

    def _read(self) -> _Journal:
        """The journal, parsed again only when it changed."""
        try:
            status, data_bytes = self._journal_path.stat(), self.path.stat().st_size
        except FileNotFoundError:
            return _Journal(None, (), 0)
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, data_bytes)
        if self._seen is None or self._seen[0] != stamp:
            self._seen = stamp, _parse(self._journal_path.read_bytes(), data_bytes)
        return self._seen[1]


def _parse(raw: bytes, data_bytes: int) -> _Journal:
    """The journal of a file that has `data_bytes`; everything from the first broken line on is ignored."""
    nothing = _Journal(None, (), 0)
    first, newline, _ = raw.partition(b"\n")
    try:
        head: object = json.loads(first)
    except ValueError:
        return nothing
    match head:
        case {"bytes": int(n_bytes), "etag": str(etag)} if newline and n_bytes == data_bytes:
            pass
        case _:
            return nothing
    position, held = len(first) + 1, []
    while line := _LINE.match(raw, position):
        start, stop = int(line[1]), int(line[2])
        if not start <= stop <= n_bytes:
            break
        held.append(Range(start, stop))
        position = line.end()
    return _Journal(Identity(n_bytes, etag), coalesce(held), position)
