"""The hidden folder beside the destination, held by one process at a time.

    out/.my-draft.mtpforge-tmp/
      lock       flock; the holder's pid and host inside, for the message
      journal    finished steps
      draft/     becomes out/my-draft
      replaced/  what --force took away, until the new one is durable (file systems without an exchange of names)

It lies beside the destination because no rename crosses file systems. The kernel frees the lock with the process, so a
killed build blocks nobody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mtpforge import errors
from mtpforge.errors import MtpforgeError, shown
from mtpforge.writing import effects

_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Claim:
    """The hidden folder of one destination, locked by this process."""

    out: Path
    folder: Path
    lock: int

    @property
    def draft(self) -> Path:
        """What will be renamed."""
        return self.folder / "draft"

    @property
    def journal(self) -> Path:
        """Finished steps."""
        return self.folder / "journal"

    @property
    def replaced(self) -> Path:
        """What --force took away."""
        return self.folder / "replaced"


@contextmanager
def on_disk(where: Path) -> Iterator[None]:
    """Turn what the system says about a path into the error that users see; always code 5."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            fix = "free some, or choose another disk with `--out`"
            raise MtpforgeError(
                "the disk is full", where=shown(where), why=str(error.strerror), fix=fix, code=errors.MACHINE
            ) from error
        why = f"{error.strerror or error} ({shown(error.filename or where)})"
        fix = "choose a folder that you may write to with `--out`"
        raise MtpforgeError(
            "cannot write the draft", where=shown(where), why=why, fix=fix, code=errors.MACHINE
        ) from error


def hidden_folder(out: Path) -> Path:
    """Where the draft `out` is prepared."""
    return out.parent / f".{out.name}.mtpforge-tmp"


def take(out: Path) -> Claim:
    """Lock the destination, or say who holds it."""
    folder = hidden_folder(out)
    with on_disk(folder):
        while True:
            _make(folder)
            try:
                fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:
                continue  # its holder removed the folder between the two calls
            if _lock(fd, out) and _is_still(folder / "lock", fd):
                break
            os.close(fd)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return Claim(out, folder, fd)


def release(claim: Claim, *, keep: bool) -> None:
    """Let go of the destination; the hidden folder goes too unless it is kept for resuming."""
    if not keep:
        for entry in (claim.draft, claim.journal, claim.replaced):
            remove(entry)
        # The lock last, still held: whoever opened it meanwhile sees that its name is gone and starts over.
        remove(claim.folder / "lock")
        with suppress(OSError):  # another build has its own lock in it already
            claim.folder.rmdir()
    os.close(claim.lock)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with everything in it; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """The names in a folder are on the medium."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        effects.sync(fd)
    finally:
        os.close(fd)


def _make(folder: Path) -> None:
    """Make a folder and what is missing above it, durably: what a lost folder holds is lost, synced or not."""
    if not folder.parent.is_dir():
        _make(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def _lock(fd: int, out: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(fd)
        raise MtpforgeError(
            "another build writes to the same output",
            where=shown(out),
            why=f"{shown(holder)} holds the lock",
            fix="wait for it, or choose another output with `--out`",
            code=errors.MACHINE,
        ) from error
    return True


def _is_still(path: Path, fd: int) -> bool:
    """Whether the name leads to the file that we locked: its holder may have removed it first."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
