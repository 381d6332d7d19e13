"""What tests of killed grafts and merges share: a run is recorded, and made again on any disk that it may leave."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager

import pytest
from faults.power_cut import read_tree, shape, write_tree
from faults.recording import Recorder
from publishing.grafted import state

from mtpforge.writing import folder


class Published:
    """A folder made out of others, which are only read. kind: what it is, and how it is called."""

    kind = ""

    def __init__(self, home, inputs):
        self.home, self.inputs, self.sound = home, inputs, set()
        self.before = self.seen()
        root = home / "recorded"
        root.mkdir()
        with self.fast(), Recorder(root).watching() as self.story:
            self.command(root)
        self.whole = shape(read_tree(root / "new" / self.kind))
        shutil.rmtree(root)
        assert self.seen() == self.before

    def command(self, root):
        """What a user types, for an output in `root / "new"`."""
        raise NotImplementedError

    def seen(self):
        """Bytes, times and places of all that is read."""
        return [state(path) for path in self.inputs]

    @contextmanager
    def fast(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "BATCH_BYTES", 300)
            patch.setattr(os, "fsync", lambda _: None)
            yield

    def complaints(self, nodes, *, is_complete):
        """What is wrong with a disk, at first sight and after the command ran again."""
        disk = repr(shape(nodes)), is_complete
        if disk in self.sound:
            return []
        root = self.home / "disk"
        write_tree(nodes, root)
        out, found = root / "new" / self.kind, []
        try:
            seen = shape(read_tree(out)) if out.exists() else None
            if seen not in (None, self.whole):
                found.append(f"half a {self.kind} lies under the name")
            if is_complete and seen is None:
                found.append(f"the {self.kind} had ended, and is not there")
            if seen is None:
                with self.fast():
                    self.command(root)
                if shape(read_tree(out)) != self.whole:
                    found.append("the same command gives other bytes")
                if [path.name for path in out.parent.iterdir()] != [self.kind]:
                    found.append("something is left behind")
            if self.seen() != self.before:
                found.append("what it is made of was written to")
        finally:
            shutil.rmtree(root)
        if not found:
            self.sound.add(disk)
        return found
