"""Files of a local folder: small ones whole, large ones by pread; none from outside, none that changed meanwhile.

A file may be a link to anywhere: that is how the hub's cache and people's own folders of shards are made, and what is
read through it has to be a config, an index or weights. A name cannot lead out of the folder: not by `..`, nor through
a folder that is a link. What is copied as it is, licences and notices, must lie in the folder itself (for a snapshot of
a hub cache, `models--org--name/snapshots/<commit>`, in its repository's cache folder, where the blobs lie): else a
folder from somewhere else could pull any file of this machine into a draft that is then published.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mtpforge.checkpoint import json_fields, metadata
from mtpforge.errors import MACHINE, MtpforgeError, shown

MAX_OPEN_FILES: Final = 16  # a layer lies in a handful of shards; whole checkpoints have hundreds


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What must stay the same between reading a header and reading its tensors."""

    size: int
    modified_ns: int
    device: int
    inode: int


class _Opened:
    """An open file. Closed with its last user, so that another thread may read while the table lets go of it."""

    __slots__ = ("descriptor",)

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def stamp(self) -> _Stamp:
        found = os.fstat(self.descriptor)
        return _Stamp(found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino)


class Files:
    """The files below one folder. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._roots = _roots(folder.resolve())
        self._stamps: dict[str, _Stamp] = {}
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> tuple[str, ...]:
        """Names of the files at the top of the folder, sorted; a link that leads nowhere is none."""
        try:
            with os.scandir(self.folder) as entries:
                return tuple(sorted(entry.name for entry in entries if _is_file(entry)))
        except OSError as error:
            raise _unreadable(self.folder, error) from None

    def inside(self, name: str, *, is_copied: bool = False) -> Path:
        """The path of a file. One that leads out of the folder is an error: by name, and if it is copied by link."""
        path = self.folder / name
        if not metadata.is_below(name):
            raise MtpforgeError(
                f"`{shown(name)}` is no file below the checkpoint", where=shown(self.folder), fix="correct the name"
            )
        # resolve() raises RuntimeError where links lead round in a circle
        real = Path(os.path.realpath(path if is_copied else path.parent))
        if not any(real.is_relative_to(root) for root in self._roots):
            raise MtpforgeError(
                f"`{shown(name)}` is a link that leads out of the checkpoint",
                where=shown(path),
                why=f"it points to `{shown(real)}`",
                fix="put the file itself there: `cp -L`, or `ln` for a hard link",
            )
        return path

    def exists(self, name: str) -> bool:
        """Whether there is such a file; a link that leads nowhere is none."""
        path = self.inside(name)
        try:
            return _is_file(path)
        except OSError as error:
            raise _unreadable(path, error) from None

    def whole(self, name: str, *, is_copied: bool = False) -> bytes | None:
        """A small file, whole; None where there is none. Larger than any config or index is an error."""
        path = self.inside(name, is_copied=is_copied)
        try:
            if not _is_file(path):
                return None
            if (size := path.stat().st_size) > json_fields.MAX_JSON_BYTES:
                raise MtpforgeError(
                    f"`{shown(name)}` is too large",
                    where=shown(path),
                    why=f"it has {size:,} bytes, at most {json_fields.MAX_JSON_BYTES:,} are read",
                    fix="fetch the file again from where it was published",
                )
            return path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from None

    def size(self, name: str) -> int:
        """Size in bytes."""
        return self._open(name).stamp().size

    def piece(self, name: str, n_bytes: int, at: int) -> bytes:
        """Bytes of a file from `at`, fewer at its end."""
        piece = bytearray(n_bytes)
        return bytes(piece[: self.fill(name, memoryview(piece), at)])

    def fill(self, name: str, into: memoryview, at: int) -> int:
        """Fill `into` from byte `at`; how many bytes came, fewer at the end. A file that changed is an error."""
        opened, done = self._open(name), 0
        while done < into.nbytes:
            try:
                count = os.preadv(opened.descriptor, [into[done:]], at + done)
            except OSError as error:
                raise _unreadable(self.folder / name, error) from None
            if not count:
                break
            done += count
        self._refuse_change(name, opened.stamp())  # also what was written while it was read
        return done

    def _open(self, name: str) -> _Opened:
        """An open file, unchanged since it was first opened."""
        with self._lock:
            opened = self._opened.pop(name, None) or self._open_new(name)
            self._opened[name] = opened
            if len(self._opened) > MAX_OPEN_FILES:
                self._opened.popitem(last=False)
            self._refuse_change(name, opened.stamp())
        return opened

    def _open_new(self, name: str) -> _Opened:
        path = self.inside(name)
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
                raise MtpforgeError(f"`{shown(name)}` is no plain file", where=shown(path), fix="remove it")
            return _Opened(path)
        except OSError as error:
            raise _unreadable(path, error) from None

    def _refuse_change(self, name: str, stamp: _Stamp) -> None:
        known = self._stamps.setdefault(name, stamp)
        if known == stamp:
            return
        sizes = f"its size went from {known.size:,} to {stamp.size:,} bytes"
        raise MtpforgeError(
            f"`{shown(name)}` changed while it was being used",
            where=shown(self.folder / name),
            why="since its header was read, " + (sizes if known.size != stamp.size else "it was written or replaced"),
            fix="wait until nothing writes to the folder, then run the command again",
        )


def _is_file(place: Path | os.DirEntry[str]) -> bool:
    """Whether there is a file; a link that leads round in a circle, or a name too long to exist, is none."""
    try:
        return place.is_file()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            return False
        raise


def _roots(folder: Path) -> tuple[Path, ...]:
    """Where the files of a folder may really lie: in it, and for a hub snapshot in its repository's cache folder."""
    snapshots = folder.parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
        return folder, snapshots.parent
    return (folder,)


def _unreadable(path: Path, error: OSError) -> MtpforgeError:
    return MtpforgeError(
        f"`{shown(path)}` cannot be read",
        where=shown(path),
        why=shown(error.strerror or error),
        fix="check that the file is there, its permissions, and the disk",
        code=MACHINE,
    )
