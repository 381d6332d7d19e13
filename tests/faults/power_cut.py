"""A disk that forgets: everything that a process does to one folder, and what a power cut may leave of it.

A `Story` holds the changes in their order (`recording.py` writes it down). `after_cut` takes the first n of them and
answers with one state that the disk may be in when the process or the power ends there:

    a killed process     Memory(1, 1): all n happened
    a power cut          what a later fsync of the same file or folder covers stays; of the rest a random part

What is assumed of a file system is little: fsync of a file keeps its bytes and length, not its name; fsync of a folder
keeps its names, not the folder's own; a rename or exchange happens whole or not at all, and is kept by an fsync of
either folder; changes of the same name keep their order. Everything else may be lost alone, and a lost write may leave
its beginning, or zeros.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

ROOT = 0


@dataclass(frozen=True, slots=True)
class Names:
    """Entries of folders that change together: (folder, name, node or None)."""

    edits: tuple
    emptied: int = -1  # the folder that rmdir took away

    @property
    def folders(self):
        return {folder for folder, _, _ in self.edits}

    @property
    def touched(self):
        """What later changes may rest on: entries, the nodes that got a name, the contents of folders."""
        entries = {(folder, name) for folder, name, _ in self.edits}
        return entries | {node for _, _, node in self.edits if node is not None} | {("in", f) for f in self.folders}

    def needed(self, synced=frozenset()):
        """What this change rests on: the same names before; the other folder of a rename; for rmdir an empty folder."""
        entries = {(folder, name) for folder, name, _ in self.edits}
        nodes = {node for _, _, node in self.edits if node is not None}
        others = self.folders - synced if len(self.folders) > 1 else set()
        return entries | nodes | others | ({("in", self.emptied)} if self.emptied >= 0 else set())


@dataclass(frozen=True, slots=True)
class Data:
    node: int
    offset: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Size:
    node: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Sync:
    node: int
    site: str


@dataclass(frozen=True, slots=True)
class Mark:
    """The build says that these steps will not be made again."""

    finished: frozenset


@dataclass(frozen=True, slots=True)
class Memory:
    """How likely a change that no fsync covers stays: of names, of bytes."""

    names: float
    data: float
    seed: int = 0


def apply(nodes, op):
    match op:
        case Names(edits):
            for folder, name, node in edits:
                nodes[folder].pop(name, None)
                if node is not None:
                    nodes[folder][name] = node
        case Data(node, offset, raw):
            held = nodes[node]
            held.extend(bytes(max(offset - len(held), 0)))
            held[offset : offset + len(raw)] = raw
        case Size(node, n_bytes):
            held = nodes[node]
            held.extend(bytes(max(n_bytes - len(held), 0)))
            del held[n_bytes:]


def read_tree(path):
    """The nodes of a real folder; ROOT is the folder itself."""
    nodes = {}

    def add(entry):
        node = len(nodes)
        nodes[node] = {} if entry.is_dir() else bytearray(entry.read_bytes())
        if entry.is_dir():
            nodes[node].update({child.name: add(child) for child in sorted(entry.iterdir())})
        return node

    add(path)
    return nodes


def write_tree(nodes, path, node=ROOT):
    if isinstance(nodes[node], bytearray):
        path.write_bytes(nodes[node])
        return
    path.mkdir()
    for name, child in nodes[node].items():
        write_tree(nodes, path / name, child)


def shape(nodes, node=ROOT):
    """A tree without its node numbers."""
    held = nodes[node]
    return bytes(held) if isinstance(held, bytearray) else {name: shape(nodes, child) for name, child in held.items()}


class Story:
    """The disk before, and what was done to it."""

    def __init__(self, before):
        self.before = before
        self.new = {}  # nodes that were made on the way: is it a folder? Of a link what it leads to, which is durable
        self.ops = []

    def with_ops(self, ops):
        story = Story(self.before)
        story.new, story.ops = dict(self.new), list(ops)
        return story

    def without(self, site):
        """The same story of a product that lacks the fsyncs of one place."""
        return self.with_ops(op for op in self.ops if not (isinstance(op, Sync) and op.site == site))

    @property
    def sites(self):
        return dict.fromkeys(op.site for op in self.ops if isinstance(op, Sync))

    def finished(self, n):
        """Steps of which the build had said that they are safe."""
        return frozenset().union(*(op.finished for op in self.ops[:n] if isinstance(op, Mark)))

    def after_cut(self, n, memory):
        nodes = {node: held.copy() for node, held in self.before.items()}
        nodes |= {node: {} if made is True else bytearray(made or b"") for node, made in self.new.items()}
        for op in kept(self.ops[:n], memory, random.Random(f"{memory} {n}")):
            apply(nodes, op)
        return nodes


def durable(ops):
    """Of each change: whether an fsync covers it, or a covered change rests on it."""
    synced, needed, answer = set(), set(), []
    for op in reversed(ops):
        match op:
            case Sync(node):
                synced.add(node)
            case Names():
                is_safe = bool(op.folders & synced or op.touched & needed)
                needed |= op.needed(synced) if is_safe else set()
                answer.append(is_safe)
                continue
            case Data(node) | Size(node):
                answer.append(node in synced)
                continue
        answer.append(False)
    return answer[::-1]


def kept(ops, memory, chance):
    lost = set()
    for op, is_safe in zip(ops, durable(ops), strict=True):
        if isinstance(op, Names):
            if is_safe or (not op.needed() & lost and chance.random() < memory.names):
                yield op
            else:
                lost |= op.touched
        elif isinstance(op, Data | Size):
            if is_safe or chance.random() < memory.data:
                yield op
            elif memory.data and isinstance(op, Data):
                yield torn(op, chance)


def torn(op, chance):
    """A beginning of a lost write; or its length without its bytes, as file systems leave after an append."""
    cut = chance.randrange(len(op.raw) + 1)
    return chance.choice([Data(op.node, op.offset, op.raw[:cut]), Data(op.node, op.offset, bytes(cut))])
