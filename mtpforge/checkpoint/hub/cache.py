"""The range cache: remote files of which only some bytes are here.

    $MTPFORGE_CACHE/                         default $HF_HOME/mtpforge
      refs/<org--name>/<revision>            the commit that a branch or tag was last seen at
      ranges/<org--name>/<commit>/
        .repository.json                     names and sizes of the files at that commit
        model-00003.safetensors              sparse: as long as the remote file, same offsets, holes where nothing is
        model-00003.safetensors.ranges       journal: size and etag, then lines
            <start> <stop> <crc32>             these bytes are here; a later line about the same start counts
            <start> <stop> -                   no longer: they were damaged
            checked                            everything above was compared with the hub (`agreement.py`)

A piece enters the journal after its bytes are on the disk (fsync), so whatever the journal names is there: killed
at any time, the next run fetches the rest. A line cut short by a crash is dropped, with everything after it. What the
disk did to the bytes later shows in their CRC when they are used. A journal of another layout counts as empty: its
bytes are fetched again. One process at a time fetches into a file (flock on its journal); readers need no lock.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import json
import os
import re
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from huggingface_hub import constants

from mtpforge import errors
from mtpforge.checkpoint.hub.checksums import PIECE_BYTES, Piece
from mtpforge.checkpoint.hub.ranges import Range, coalesce, subtract
from mtpforge.durable import effects, files
from mtpforge.durable.refusing import Words, refusals
from mtpforge.errors import MtpforgeError, shown
from mtpforge.units import file_size

_LINE: Final = re.compile(rb"(?:(\d{1,19}) (\d{1,19}) ([0-9a-f]{8}|-)|checked)\n")
_LAYOUT: Final = 2  # of the journal: pieces with checksums
_WORDS: Final = Words(
    full="the download cache is full",
    make_room="free some space there, or set `MTPFORGE_CACHE` to a folder on another disk; what is there is kept",
    refused="the download cache cannot be used",
    choose="make the folder writable, or set `MTPFORGE_CACHE` to another one",
)


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
        files.replace(path, text.encode())


def disk_errors(path: Path) -> AbstractContextManager[None]:
    """Turns what the file system refuses into an error with exit code 5."""
    return refusals(path, _WORDS)


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
    identity: Identity | None = None
    pieces: tuple[Piece, ...] = ()  # ascending
    held: tuple[Range, ...] = ()
    unchecked: tuple[Piece, ...] = ()
    n_bytes: int = 0  # of the journal, up to the first line that is not whole


class RangeFile:
    """One sparse file and its journal. Reading needs nothing; writing happens inside `filling`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal_path = path.with_name(f"{path.name}.ranges")
        self._lock = threading.Lock()
        self._seen: tuple[tuple[int, ...], _Journal] | None = None
        self._data = self._log = -1
        self._sound: set[Piece] = set()  # read once by this process, and whole

    @property
    def identity(self) -> Identity | None:
        """Size and etag of the remote file; None when nothing of it is here."""
        return self._read().identity

    @property
    def held(self) -> tuple[Range, ...]:
        """The ranges that are here, ascending and disjoint."""
        return self._read().held

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What is here, as it was written down, ascending."""
        return self._read().pieces

    @property
    def unchecked(self) -> tuple[Piece, ...]:
        """Pieces that were not compared with the hub yet, ascending."""
        return self._read().unchecked

    def missing(self, wanted: Iterable[Range]) -> tuple[Range, ...]:
        """The bytes of `wanted` that are not here."""
        return subtract(wanted, self.held)

    def damaged(self, part: Range) -> tuple[Piece, ...]:
        """The pieces that this range touches and that are no longer what came. Each is read once per process."""
        pieces = self._read().pieces
        first = max(0, bisect.bisect_right(pieces, part.start, key=lambda piece: piece.range.start) - 1)
        last = bisect.bisect_left(pieces, part.stop, key=lambda piece: piece.range.start)
        doubtful = [p for p in pieces[first:last] if p.range.stop > part.start and p not in self._sound]
        if not doubtful:
            return ()
        found, buffer = [], memoryview(bytearray(PIECE_BYTES))
        with disk_errors(self.path), self.path.open("rb", buffering=0) as file:
            for piece in doubtful:
                count = os.preadv(file.fileno(), [buffer[: piece.range.n_bytes]], piece.range.start)
                if count == piece.range.n_bytes and zlib.crc32(buffer[:count]) == piece.crc:
                    self._sound.add(piece)
                else:
                    found.append(piece)
        return tuple(found)

    def read(self, part: Range) -> bytes:
        """The bytes of a range that is here."""
        with disk_errors(self.path), self.path.open("rb", buffering=0) as file:
            raw = os.pread(file.fileno(), part.n_bytes, part.start)
            if len(raw) != part.n_bytes:
                raise OSError(errno.EIO, "the file is cut short", str(self.path))
            return raw

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the file alone: other processes, and other threads of this one, wait."""
        with disk_errors(self._journal_path):
            files.make_folder(self.path.parent)
            log = files.hold(self._journal_path)
        try:
            with disk_errors(self._journal_path):
                os.ftruncate(log, self._read().n_bytes)  # else what is written now would stand behind a torn line
            self._log = log
            yield
        finally:
            self._log = -1
            os.close(log)

    @contextlib.contextmanager
    def filling(self, identity: Identity) -> Iterator[None]:
        """Make ready for `put` and `finish`, inside `locked`. Bytes of another version of the file are dropped."""
        with disk_errors(self.path):
            if self._read().identity != identity:
                self.drop()
                self._append(_head(identity))
            self._data = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            files.sync_names(self.path.parent)  # else the name may lead to dropped bytes again
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
            effects.put(self._data, memoryview(chunk), start)

    def finish(self, pieces: Iterable[Piece]) -> None:
        """Make these bytes durable, then write them down as here."""
        if lines := b"".join(b"%d %d %08x\n" % (p.range.start, p.range.stop, p.crc) for p in pieces):
            with disk_errors(self.path):
                effects.sync(self._data)
            self._append(lines)

    def settle(self) -> None:
        """Write down that everything here was compared with the hub."""
        self._append(b"checked\n")

    def forget(self, pieces: Iterable[Piece]) -> None:
        """Write these bytes down as missing, inside `locked`."""
        self._append(b"".join(b"%d %d -\n" % (p.range.start, p.range.stop) for p in pieces))

    def drop(self) -> None:
        """Forget everything that is here, inside `locked`."""
        with disk_errors(self._journal_path):
            os.ftruncate(self._log, 0)
            effects.sync(self._log)  # forget the ranges before their bytes, and before another head is written
            self.path.unlink(missing_ok=True)

    def _append(self, lines: bytes) -> None:
        with disk_errors(self._journal_path), self._lock:
            end = os.fstat(self._log).st_size
            try:
                effects.put(self._log, memoryview(lines), end)
            except OSError:
                os.ftruncate(self._log, end)  # what is written behind a torn line would not be read
                raise
            effects.sync(self._log)

    def _read(self) -> _Journal:
        """The journal, parsed again only when it changed."""
        try:
            status, data_bytes = self._journal_path.stat(), self.path.stat().st_size
        except FileNotFoundError:
            return _Journal()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, data_bytes)
        if self._seen is None or self._seen[0] != stamp:
            self._seen = stamp, _parse(self._journal_path.read_bytes(), data_bytes)
        return self._seen[1]


def _head(identity: Identity) -> bytes:
    return json.dumps({"bytes": identity.n_bytes, "etag": identity.etag, "layout": _LAYOUT}).encode() + b"\n"


def _parse(raw: bytes, data_bytes: int) -> _Journal:
    """The journal of a file that has `data_bytes`; everything from the first broken line on is ignored."""
    first, newline, _ = raw.partition(b"\n")
    try:
        head: object = json.loads(first)
    except ValueError:
        return _Journal()
    match head:
        case {"bytes": int(n_bytes), "etag": str(etag), "layout": layout} if (
            newline and layout == _LAYOUT and n_bytes == data_bytes
        ):
            pass
        case _:
            return _Journal()
    position = len(first) + 1
    pieces: dict[int, Piece] = {}
    unchecked: dict[int, Piece] = {}
    while line := _LINE.match(raw, position):
        if line[1] is None:
            unchecked.clear()
        else:
            start, stop = int(line[1]), int(line[2])
            if not start < stop <= min(n_bytes, start + PIECE_BYTES):
                break
            pieces.pop(start, None)
            unchecked.pop(start, None)
            if line[3] != b"-":
                pieces[start] = unchecked[start] = Piece(Range(start, stop), int(line[3], 16))
        position = line.end()
    ordered, doubtful = (tuple(held[start] for start in sorted(held)) for held in (pieces, unchecked))
    return _Journal(Identity(n_bytes, etag), ordered, coalesce(p.range for p in ordered), doubtful, position)
