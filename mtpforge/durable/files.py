"""Whole files and folders, durably: held by one process at a time, replaced at once, made and removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from pathlib import Path

from mtpforge.durable import effects


def hold(path: Path, *, wait: bool = True) -> int:
    """A descriptor of the file, made where there is none, that no other process or thread holds until it is closed.

    BlockingIOError where another holds it, unless `wait`. The kernel frees it with the process. A holder may remove or
    rename the file while others open it: what is held is the file that has the name.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(fd)
            raise
        if _is_still(path, fd):
            return fd
        os.close(fd)


def _is_still(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, durably: what a lost folder holds is lost, synced or not."""
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_names(folder.parent)


def sync_names(folder: Path) -> None:
    """The names in a folder are on the medium."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        effects.sync(fd)
    finally:
        os.close(fd)


def write(path: Path, data: bytes) -> None:
    """A new file, whole; its bytes are durable, its name when its folder is synced."""
    fd = effects.allocate(path, len(data))
    try:
        effects.put(fd, memoryview(data), 0)
        effects.sync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes) -> None:
    """A small file: whoever reads it, now or after a power cut, finds the old bytes or the new ones."""
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        write(beside, data)
        take_place(beside, path)
    except OSError as error:
        if error.filename == str(beside):
            error.filename = str(path)  # whoever asked knows of no other name
        raise
    finally:
        beside.unlink(missing_ok=True)


def take_place(beside: Path, path: Path) -> None:
    """A file whose bytes are durable appears under another name of its folder, in place of what was there."""
    beside.rename(path)
    sync_names(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with everything in it; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
