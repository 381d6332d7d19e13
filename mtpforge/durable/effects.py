"""The six functions that change the disk. Everything else decides; a crash can only fall between two of these.

allocate   a file of its full length, every block reserved: a full disk shows before the first weight is read
put        bytes at an offset
append     one line at the end of the journal
sync       what was put or appended is on the medium, as far as the drive tells the truth; for a folder: its names
link       another name of a file, or a link to it
publish    the hidden folder appears under its final name, in one step
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100  # linux/fcntl.h
_NOREPLACE: Final = 1  # linux/fs.h, RENAME_NOREPLACE
_EXCHANGE: Final = 2  # linux/fs.h, RENAME_EXCHANGE
_UNSUPPORTED: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})


def allocate(path: Path, n_bytes: int) -> int:
    """A descriptor of the file, `n_bytes` long, its blocks reserved; what it held up to there stays."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(fd, n_bytes)
        if n_bytes and hasattr(os, "posix_fallocate"):
            _reserve(fd, n_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def put(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; a write may be cut short by the system, so it is repeated."""
    while data:
        n_bytes = os.pwrite(fd, data, offset)
        data, offset = data[n_bytes:], offset + n_bytes


def append(fd: int, line: bytes) -> None:
    """Write at the end of a file that was opened for appending."""
    while line:
        line = line[os.write(fd, line) :]


def sync(fd: int) -> None:
    """Flush a file, or the names in a folder, to the medium."""
    os.fsync(fd)


def link(place: Path, name: Path, *, hard: bool) -> None:
    """`name` leads to the file `place`: as a second name of it, on one file system alone, or as a symbolic link."""
    if hard:
        name.hardlink_to(place)
    else:
        name.symlink_to(place)


def publish(staged: Path, destination: Path, aside: Path | None) -> None:
    """Make the folder `staged` appear as `destination`.

    aside None: nothing may be there, not even an empty folder (os.rename would replace that silently): FileExistsError.
    Otherwise what is there changes places with `staged`; where the file system cannot exchange, it moves to `aside`
    first, and a crash between the two renames leaves it there for the next run to put back.
    """
    exists = os.path.lexists(destination)
    if exists and aside is None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
    if _renameat2(staged, destination, _EXCHANGE if exists else _NOREPLACE):
        return
    if exists and aside is not None:
        destination.rename(aside)
    staged.rename(destination)


def _reserve(fd: int, n_bytes: int) -> None:
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:  # a file system without reservation: the length alone must do
            raise


def _renameat2(old: Path, new: Path, flags: int) -> bool:
    """Whether the system could; False where it does not know the call or the flag."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc >= 2.28
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(new))
