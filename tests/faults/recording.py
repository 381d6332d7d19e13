"""Writes down what a build does to one folder: the calls of `os` that change a disk are wrapped, below the product."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.power_cut import ROOT, Data, Memory, Names, Size, Story, Sync, apply, read_tree, shape

import mtpforge
from mtpforge.durable import effects

PRODUCT = Path(mtpforge.__file__).parent


class Recorder:
    """Wraps `os` while a build runs; only what lies below `root` is noted. fsync costs nothing meanwhile."""

    def __init__(self, root, earlier=None):
        """`earlier`: the story of a killed process, of which this one finds everything, durable or not."""
        self.root = Path(os.path.realpath(root))
        self.story = earlier or Story(read_tree(self.root))
        self.live = self.story.after_cut(len(self.story.ops), Memory(1, 1))
        self.opened = {}  # descriptor -> node, opened for appending
        self.lock = threading.RLock()

    def note(self, op):
        self.story.ops.append(op)
        apply(self.live, op)

    def make(self, place, *, is_folder):
        node = len(self.live)
        self.live[node], self.story.new[node] = ({} if is_folder else bytearray()), is_folder
        self.note(Names(((*place, node),)))
        return node

    def place(self, path, dir_fd=None):
        """(folder, name) of a path below the root, None elsewhere. The root itself is (ROOT, "")."""
        if dir_fd is not None:
            return (self.opened[dir_fd][0], os.fspath(path)) if dir_fd in self.opened else None
        path = Path(os.path.abspath(path))  # noqa: PTH100
        path = Path(os.path.realpath(path.parent)) / path.name
        if not path.is_relative_to(self.root):
            return None
        folder, names = ROOT, path.relative_to(self.root).parts
        for name in names[:-1]:
            folder = self.live[folder][name]
        return folder, names[-1] if names else ""

    def node(self, place):
        return self.live[place[0]].get(place[1]) if place[1] else place[0]

    @contextmanager
    def watching(self):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "close", "pwrite", "write", "ftruncate", "posix_fallocate", "fsync", "mkdir"):
                self.wrap(patch, os, name, getattr(self, name))
            for name in ("unlink", "remove", "rmdir"):
                self.wrap(patch, os, name, self.remove)
            for name in ("symlink", "link"):
                self.wrap(patch, os, name, self.link)
            for name in ("rename", "replace"):
                self.wrap(patch, os, name, self.rename)
            self.wrap(patch, effects, "_renameat2", self.renameat2)
            yield self.story
        # Whatever goes past the wrapped calls shows here.
        assert shape(read_tree(self.root)) == shape(self.live)

    def wrap(self, patch, module, name, note):
        real = getattr(module, name)

        def call(*args, **options):
            with self.lock:
                return note(real, *args, **options)

        patch.setattr(module, name, call)

    def open(self, real, path, flags, mode=0o777, *, dir_fd=None):
        fd = real(path, flags, mode, dir_fd=dir_fd)
        if place := self.place(path, dir_fd):
            node = self.node(place)
            node = self.make(place, is_folder=False) if node is None else node
            self.opened[fd] = node, bool(flags & os.O_APPEND)
            if flags & os.O_TRUNC:
                self.note(Size(node, 0))
        return fd

    def close(self, real, fd):
        self.opened.pop(fd, None)
        return real(fd)

    def pwrite(self, real, fd, data, offset):
        n_bytes = real(fd, data, offset)
        if fd in self.opened:
            self.note(Data(self.opened[fd][0], offset, bytes(data[:n_bytes])))
        return n_bytes

    def write(self, real, fd, data):
        n_bytes = real(fd, data)
        if fd in self.opened:
            node, is_appending = self.opened[fd]
            assert is_appending
            self.note(Data(node, len(self.live[node]), bytes(data[:n_bytes])))
        return n_bytes

    def ftruncate(self, real, fd, n_bytes):
        real(fd, n_bytes)
        if fd in self.opened:
            self.note(Size(self.opened[fd][0], n_bytes))

    def posix_fallocate(self, real, fd, offset, n_bytes):
        real(fd, offset, n_bytes)
        if fd in self.opened:
            node = self.opened[fd][0]
            self.note(Size(node, max(len(self.live[node]), offset + n_bytes)))

    def fsync(self, real, fd):
        if fd in self.opened:
            self.note(Sync(self.opened[fd][0], f"{caller()}: {self.kind(self.opened[fd][0])}"))
        else:
            real(fd)

    def mkdir(self, real, path, mode=0o777, *, dir_fd=None):
        real(path, mode, dir_fd=dir_fd)
        if place := self.place(path, dir_fd):
            self.make(place, is_folder=True)

    def remove(self, real, path, *, dir_fd=None):
        place = self.place(path, dir_fd)
        real(path, dir_fd=dir_fd)
        if place:
            node = self.node(place)
            self.note(Names(((*place, None),), emptied=node if isinstance(self.live[node], dict) else -1))

    def link(self, real, place, name, *args, **options):
        """A second name of a file elsewhere, whose bytes are on the medium long since."""
        real(place, name, *args, **options)
        if at := self.place(name):
            node, raw = len(self.live), Path(place).read_bytes()
            self.live[node], self.story.new[node] = bytearray(raw), raw
            self.note(Names(((*at, node),)))

    def rename(self, real, old, new):
        places = self.place(old), self.place(new)
        real(old, new)
        if all(places):
            self.note(Names(((*places[0], None), (*places[1], self.node(places[0])))))

    def renameat2(self, real, old, new, flags):
        places = self.place(old), self.place(new)
        done = real(old, new, flags)
        if done and all(places):
            there = self.node(places[1]) if flags == effects._EXCHANGE else None
            self.note(Names(((*places[0], there), (*places[1], self.node(places[0])))))
        return done

    def kind(self, node):
        """What a node is to the draft."""
        name = next(
            (n for held in self.live.values() if isinstance(held, dict) for n, x in held.items() if x == node), ""
        )
        if isinstance(self.live[node], dict):
            return f"{name}/" if name == "draft" else "hidden folder" if name.startswith(".") else "a folder above"
        return "weights" if name.endswith(".safetensors") else name if name == "journal" else "small file"


def caller():
    """The function of the product that asked for an fsync; those of `durable` ask for others."""
    frame = sys._getframe(1)
    while PRODUCT not in (file := Path(frame.f_code.co_filename)).parents or file.parent.name == "durable":
        frame = frame.f_back
    return frame.f_code.co_name
