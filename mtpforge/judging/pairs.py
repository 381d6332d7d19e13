"""A draft beside a reference: which expert is which, and how far each stored module is off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from mtpforge import manifest
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.nextn.layer import Block
from mtpforge.sourcing import StoredLayer, stored_layer
from mtpforge.tensors import TensorRef
from mtpforge.weights import Reader

if TYPE_CHECKING:
    from torch import Tensor

ROUTER: Final = "mlp.gate"  # its bias with it


@dataclass(frozen=True, slots=True)
class Side:
    """A layer to run, and by its modules."""

    block: Block
    stored: StoredLayer

    @classmethod
    def of(cls, block: Block) -> Side:
        """MtpforgeError where a module is missing or of no known format."""
        return cls(block, stored_layer(block.checkpoint, family_of(block.checkpoint.config)))

    @property
    def n_bytes(self) -> int:
        """Of the layer as it is stored."""
        refs = [ref for module in self.stored.modules.values() for ref in module.parts.values()]
        return sum(ref.stop - ref.start for ref in (*refs, *self.stored.plain.values()))

    def parts(self, name: str) -> Iterator[TensorRef]:
        """Tensors of a module that decide what it computes."""
        if name in self.stored.modules:
            yield from self.stored.modules[name].weight_parts.values()
        yield from (ref for plain, ref in self.stored.plain.items() if plain.rpartition(".")[0] == name)

    def values(self, name: str) -> Iterator[Tensor]:
        """Float32, rounded as engines hold them: rows of the weight, then whole vectors."""
        reader = Reader(self.block.checkpoint.read)
        if name in self.stored.modules:
            module = self.stored.modules[name]
            is_exact = module.quantization.dtype == "F32"
            yield from (
                band if is_exact else band.to(torch.bfloat16).float() for band in module.weight(reader).decoded()
            )
        for plain in sorted(plain for plain in self.stored.plain if plain.rpartition(".")[0] == name):
            yield reader.tensor(self.stored.plain[plain]).float()


@dataclass(frozen=True, slots=True)
class Pair:
    """kept: the reference's expert of every expert of the draft."""

    reference: Side
    draft: Side
    kept: tuple[int, ...]

    @property
    def drops(self) -> bool:
        """Whether the draft has fewer."""
        return len(self.kept) < self.reference.stored.n_experts

    def kinds(self) -> Mapping[str, tuple[str, ...]]:
        """Kind -> modules that are no single expert's; what both layers have."""
        config = self.reference.block.checkpoint.config
        family, found = family_of(config), dict[str, dict[str, None]]()
        both = self.reference.stored, self.draft.stored
        for name, stored in both[0].modules.items():
            if stored.module.expert is None and name in both[1].modules:
                found.setdefault(stored.module.kind, {})[name] = None
        for plain in family.plain(config, len(self.kept)):
            if all(plain.name in layer.plain for layer in both):
                found.setdefault(plain.kind, {})[plain.name.rpartition(".")[0]] = None
        return {kind: tuple(names) for kind, names in found.items()}

    def weight_error(self, name: str) -> float:
        """|W' - W| / |W| of a module and the vectors named after it; rows of dropped experts are no error."""
        sides = self.draft, self.reference
        for side in sides:
            side.block.checkpoint.fetch(side.parts(name))
        kept = torch.tensor(self.kept) if name == ROUTER and self.drops else None
        if kept is None:
            return ratio(zip(*(side.values(name) for side in sides), strict=True))
        ours, theirs = (list(side.values(name)) for side in sides)
        vectors = list(zip(ours[-1:], [theirs[-1][kept]], strict=True))
        return ratio([(torch.cat(ours[:-1]), torch.cat(theirs[:-1])[kept]), *vectors])


def ratio(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """|a - b| / |b| over pairs of tensors; infinite where b is zero and a is not."""
    square = norm = 0.0
    for ours, theirs in pairs:
        square += float((ours - theirs).double().square().sum())
        norm += float(theirs.double().square().sum())
    return relative(square**0.5, norm**0.5)


def relative(part: float, size: float) -> float:
    """One size over another; infinite where the other is zero and the one is not."""
    if not size:
        return float("inf") if part else 0.0
    return part / size


def paired(reference: Side, draft: Side) -> Pair:
    """Both, with the reference's number of every expert of the draft.

    As many experts are in the same order. Of fewer the router tells, whose rows are copies, else the draft's manifest.
    MtpforgeError where neither does, or the draft has more.
    """
    n_ours, n_theirs = draft.stored.n_experts, reference.stored.n_experts
    if n_ours == n_theirs:
        return Pair(reference, draft, tuple(range(n_ours)))
    told = manifest.find(draft.block.checkpoint) if n_ours < n_theirs else None
    kept = _by_rows(reference, draft) if n_ours < n_theirs else None
    if kept is None and told is not None and isinstance(listed := told.body.get("kept_experts"), list):
        kept = tuple(number for number in listed if type(number) is int and 0 <= number < n_theirs)
    if kept is None or len(kept) != n_ours:
        raise MtpforgeError(
            f"which of the reference's {n_theirs} experts the draft's {n_ours} are cannot be told",
            where=shown(draft.block.checkpoint.label),
            why="rows of its router are none of the reference's, and it has no mtpforge.json that lists them",
            fix="name the checkpoint that the draft was made from: `--reference SOURCE`",
        )
    return Pair(reference, draft, kept)


def _by_rows(reference: Side, draft: Side) -> tuple[int, ...] | None:
    """Ascending numbers of the reference's router rows that the draft's are; None where one is not."""
    for side in (reference, draft):
        side.block.checkpoint.fetch(side.parts(ROUTER))
    theirs, ours = (torch.cat([v for v in side.values(ROUTER) if v.ndim > 1]) for side in (reference, draft))
    found, number = [], 0
    for row in ours:
        while number < len(theirs) and not torch.equal(theirs[number], row):
            number += 1
        if number == len(theirs):
            return None
        found.append(number)
        number += 1
    return tuple(found)
