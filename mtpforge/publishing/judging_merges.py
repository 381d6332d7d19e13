"""A merge, judged as a stranger would: the folder opened again, each module beside the one that it was taken from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import DEFAULT, ENGINES
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.publishing.merging import Merge, Side, origins_of, refuse_unproved, side_of
from mtpforge.publishing.target_files import target_files
from mtpforge.report import Check, Report
from mtpforge.tensors import TensorRef

_PIECE_BYTES: Final = 8 << 20
_AROUND: Final = "taken tensors"  # of a merge that was made before; `values` are the layer's beside a source


def judge(merge: Merge, folder: Path) -> Report:
    """Whether each module is as the one block has it, by the same questions, and every tensor the one of its side."""
    held = open_checkpoint(folder)
    strays = held.strays("")
    twice = "; ".join(f"`{shown(stray.name)}` lies in {', '.join(stray.files)}" for stray in strays[:3])
    files = Check("files", "failed" if strays else "passed", twice or f"{len(held.names):,} tensors, each in one place")
    alone = side_of(held, target_files(held, ENGINES[DEFAULT]))
    if lost := sorted(merge.origins.keys() ^ alone.modules.keys()):
        why = f"{len(lost)} are not there, or were not to be: `{shown(lost[0])}`"
        return Report("merge", (files, Check("modules", "failed", why)))
    checks = (files, _modules(merge, alone), values(merge.origins, merge.sides, alone))
    ok = all(check.verdict == "passed" for check in checks)
    return Report("merge", checks, summary="one config states all of it" if ok else "")


def _modules(merge: Merge, alone: Side) -> Check:
    """Each stored as the merged block says, and that is what the block of its own checkpoint says of it."""
    held, engine = alone.checkpoint, ENGINES[DEFAULT]
    family, here = family_of(held.config), dict.fromkeys(alone.modules, 0)
    _, stored = engine.merged([held], family, here.get)
    _, before = engine.merged([side.checkpoint for side in merge.sides], family, merge.origins.get)
    try:
        refuse_unproved(family, [alone], here, stored)
    except MtpforgeError as error:
        return Check("modules", "failed", f"{error.what}: {error.why}")
    if odd := sorted(name for name in stored.keys() | before.keys() if stored.get(name) != before.get(name)):
        return Check("modules", "failed", f"`{shown(odd[0])}` is another format by the merged config than by its own")
    detail = f"{len(merge.origins):,}, each stored as the merged config says; {engine.name} asks about {len(stored):,}"
    return Check("modules", "passed", detail)


@dataclass(frozen=True, slots=True)
class Taken:
    """What a finished merge says that it was made of.

    patterns: of modules that others gave. sides: the base, then they; None for one that is not here. unread: why not.
    """

    patterns: tuple[str, ...]
    sides: tuple[Side | None, ...]
    unread: str


def again(taken: Taken, alone: Side) -> Iterator[Check]:
    """A merge that was made before: modules as the block says, every tensor the one of its side, where that is here."""
    origins = origins_of(taken.patterns, alone.modules)
    family, here = family_of(alone.checkpoint.config), dict.fromkeys(alone.modules, 0)
    try:
        _, stored = ENGINES[DEFAULT].merged([alone.checkpoint], family, here.get)
        refuse_unproved(family, [alone], here, stored)
        yield Check("modules", "passed", f"{len(alone.modules):,}, each stored as the config says")
    except MtpforgeError as error:
        yield Check("modules", "failed", f"{error.what}: {error.why}")
    given = [{} if side is None else origins_of(taken.patterns, side.modules) for side in taken.sides]
    wanted = {module for i, found in enumerate(given) for module, of in found.items() if of == i}
    known = {module: i for module, i in origins.items() if taken.sides[i] is not None}
    if odd := sorted(wanted ^ known.keys()):
        yield Check(_AROUND, "failed", f"`{shown(odd[0])}` is not in both the merge and what it was taken from")
        return
    check = replace(values(known, taken.sides, alone), name=_AROUND)
    left = sum(len(alone.modules[module]) for module in origins.keys() - known.keys())
    if check.verdict == "passed" and taken.unread:
        check = Check(_AROUND, "not checked", f"of {left:,} tensors: {taken.unread}; {check.detail}")
    yield check


def values(origins: Mapping[str, int], sides: Sequence[Side | None], alone: Side) -> Check:
    """Every tensor is the one of its side: dtype, shape, and bytes, which are read unless the file is shared."""
    shared, read = 0, 0
    for module, number in origins.items():
        side = sides[number]
        assert side is not None  # noqa: S101 -- of others nothing is asked
        ours, theirs = alone.modules[module], side.modules[module]
        for suffix in sorted(ours.keys() | theirs.keys()):
            name = f"`{shown(module)}.{suffix}`"
            one, other = ours.get(suffix), theirs.get(suffix)
            if one is None or other is None or one.spec != other.spec:
                return Check("values", "failed", f"{name} is {one and one.spec}, taken was {other and other.spec}")
            if _is_same_place(alone, one, side, other):
                shared += 1
            elif _differ(_pieces(alone.files.folder, one), _pieces(side.files.folder, other)):
                return Check("values", "failed", f"{name} holds other bytes than the one of {side.checkpoint.label}")
            else:
                read += 1
    return Check("values", "passed", f"{shared:,} tensors in shared files, {read:,} read beside where they come from")


def _differ(ours: Iterator[bytes], theirs: Iterator[bytes]) -> bool:
    return any(a != b for a, b in zip(ours, theirs, strict=True))


def _is_same_place(alone: Side, one: TensorRef, side: Side, other: TensorRef) -> bool:
    ours, theirs = alone.files.places[one.file], side.files.places[other.file]
    return (one.start, one.stop) == (other.start, other.stop) and ours.samefile(theirs)


def _pieces(held: Checkpoint, ref: TensorRef) -> Iterator[bytes]:
    for start in range(ref.start, ref.stop, _PIECE_BYTES):
        piece = bytearray(min(_PIECE_BYTES, ref.stop - start))
        held.read(replace(ref, start=start, stop=start + len(piece)), memoryview(piece))
        yield bytes(piece)
