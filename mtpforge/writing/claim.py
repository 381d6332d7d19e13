"""The hidden folder beside the destination, held by one process at a time.

    out/.my-draft.mtpforge-tmp/
      lock       flock; the holder's pid and host inside, for the message
      journal    finished steps
      draft/     becomes out/my-draft
      layer/     of a graft: the layer, where it has to be made first
      replaced/  what --force took away, until the new one is durable (file systems without an exchange of names)

It lies beside the destination because no rename crosses file systems. The kernel frees the lock with the process, so a
killed build blocks nobody.
"""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mtpforge import errors
from mtpforge.durable import files
from mtpforge.durable.refusing import Words, refusals
from mtpforge.errors import MtpforgeError, shown

_LOCK: Final = "lock"

DRAFT: Final = "draft"


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
    def layer(self) -> Path:
        """A draft that a graft is made of, before it is."""
        return self.folder / "layer"

    @property
    def replaced(self) -> Path:
        """What --force took away."""
        return self.folder / "replaced"


def on_disk(where: Path, what: str = DRAFT, option: str = "--out") -> AbstractContextManager[None]:
    """Turns what the system says about a path into the error that users see; always code 5.

    what: that is written there. option: by which its place is chosen.
    """
    words = Words(
        full="the disk is full",
        make_room=f"free some, or choose another disk with `{option}`",
        refused=f"cannot write the {what}",
        choose=f"choose a folder that you may write to with `{option}`",
    )
    return refusals(where, words)


def hidden_folder(out: Path) -> Path:
    """Where the draft `out` is prepared."""
    return out.parent / f".{out.name}.mtpforge-tmp"


def take(out: Path, what: str = DRAFT, option: str = "--out") -> Claim:
    """Lock the destination, or say who holds it. what, option: as of `on_disk`."""
    folder = hidden_folder(out)
    with on_disk(folder, what, option):
        fd = _hold(folder, out, option)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return Claim(out, folder, fd)


def _hold(folder: Path, out: Path, option: str) -> int:
    """A descriptor of the lock, held."""
    while True:
        files.make_folder(folder)
        try:
            return files.hold(folder / _LOCK, wait=False)
        except FileNotFoundError:
            continue  # its holder removed the folder between the two calls
        except BlockingIOError as error:
            raise _held(folder / _LOCK, out, option) from error


def _held(lock: Path, out: Path, option: str) -> MtpforgeError:
    holder = ""
    with suppress(OSError):  # it has just ended
        holder = lock.read_text(errors="replace")[:200].strip()
    return MtpforgeError(
        "another build writes to the same output",
        where=shown(out),
        why=f"{shown(holder or 'another process')} holds the lock",
        fix=f"wait for it, or choose another output with `{option}`",
        code=errors.MACHINE,
    )


def release(claim: Claim, *, keep: bool) -> None:
    """Let go of the destination; the hidden folder goes too unless it is kept for resuming."""
    if not keep:
        for entry in claim.folder.iterdir():
            if entry.name != _LOCK:
                files.remove(entry)
        # The lock last, still held: whoever opened it meanwhile sees that its name is gone and starts over.
        files.remove(claim.folder / _LOCK)
        with suppress(OSError):  # another build has its own lock in it already
            claim.folder.rmdir()
    os.close(claim.lock)
