"""recover(): which experts of an unpruned layer a pruned copy of it still has.

The rows of the router name the experts, and are two tensors. Where they are not the unpruned ones, byte for byte (the
router was trained on after pruning, or stored anew), the first rows of one projection of every expert decide; where
these are nobody's either, the nearest rows of the router do.

The margin of a match is 1 - d1 / d2, with d1 and d2 the Euclidean distances to the nearest and the second nearest: 1
where the match is exact, 0 where two are as near. The margin of a list is its smallest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.pruning import reading
from mtpforge.sourcing import StoredLayer, StoredModule
from mtpforge.weights import Reader

if TYPE_CHECKING:
    from torch import Tensor

# Noise as large as the weights themselves leaves a margin of 0.4, unrelated weights one near 0.
_DECIDED: Final = 0.2
_ROWS_READ: Final = 32  # whole words of zero points packed along the rows, at every width
_ROWS_COMPARED: Final = 8  # 49,152 weights of GLM-5.2's: chance matches are out of question


@dataclass(frozen=True, slots=True)
class Recovered:
    """The experts that a pruned layer has.

    numbers: of each of its experts in turn, the number in the unpruned layer. by: whose rows decided. margin: of the
    worst match, 1 where all are exact. router_margin: of the router's rows, as far as they were asked.
    """

    numbers: tuple[int, ...]
    by: Literal["router", "experts"]
    margin: float
    router_margin: float

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers, ascending."""
        return tuple(sorted(self.numbers))

    def __str__(self) -> str:
        """`by the rows of the router, exactly`."""
        how = "exactly" if self.margin == 1 else f"by the nearest, margin {self.margin:.2f}"
        order = "" if list(self.numbers) == sorted(self.numbers) else ", in another order"
        if self.by == "router":
            return f"by the rows of the router, {how}{order}"
        return f"by the weights of the experts, {how}{order}; the router's rows were changed"


def recover(source: Checkpoint, layer: StoredLayer, pruned: Checkpoint, left: StoredLayer) -> Recovered:
    """Which experts of `layer` (of `source`) are in `left` (of `pruned`).

    Reads the two routers; where they do not decide, a few rows of every expert of both. MtpforgeError where the layers
    are not of one shape, or no match is clear.
    """
    ours, theirs = _router(layer), _router(left)
    if left.n_experts > layer.n_experts or ours.module.shape[1] != theirs.module.shape[1]:
        raise MtpforgeError(
            f"{pruned.label} is no pruned copy of the source's layer",
            where=f"{left.n_experts} experts of width {theirs.module.shape[1]}, the source has {layer.n_experts} of"
            f" width {ours.module.shape[1]}",
            fix="name a checkpoint of the same model with fewer experts, or a JSON list: `--keep-experts FILE`",
        )
    held, rows = _whole(pruned, theirs), _whole(source, ours)
    numbers, near = _match(*_alike(held, theirs, rows, ours))
    if near == 1:
        return Recovered(numbers, "router", near, near)
    of_experts, clear = _match(_features(pruned, left), _features(source, layer))
    if clear >= _DECIDED:
        return Recovered(of_experts, "experts", clear, near)
    if near >= _DECIDED:
        return Recovered(numbers, "router", near, near)
    raise MtpforgeError(
        f"which experts {pruned.label} kept cannot be told",
        where=f"margin of the router's rows {near:.2f}, of the experts' weights {clear:.2f}, {_DECIDED} decides",
        why="experts that were merged, or trained on for long, are nobody's in particular; so are another model's",
        fix="give the list itself: `--keep-experts FILE`, or choose anew: `--prune-by METHOD`",
    )


def _router(layer: StoredLayer) -> StoredModule:
    return next(stored for stored in layer.modules.values() if stored.module.kind == "router")


def _whole(checkpoint: Checkpoint, stored: StoredModule) -> Tensor:
    """A matrix, float32 [out, in]."""
    import torch

    checkpoint.fetch(stored.weight_parts.values())
    weight = torch.cat(list(stored.weight(Reader(checkpoint.read)).decoded()))
    return reading.refuse_no_numbers(stored.module.name, weight)


def _alike(held: Tensor, theirs: StoredModule, rows: Tensor, ours: StoredModule) -> tuple[Tensor, Tensor]:
    """Both in the coarser of their two dtypes: a router that was only cast is still the same."""
    import torch

    if "BF16" in {theirs.quantization.dtype, ours.quantization.dtype}:
        return held.to(torch.bfloat16).float(), rows.to(torch.bfloat16).float()
    return held, rows


def _features(checkpoint: Checkpoint, layer: StoredLayer) -> Tensor:
    """The first rows of the first projection of every expert, float32 [n_experts, rows * in]."""
    import torch

    first: dict[int, StoredModule] = {}
    for stored in layer.modules.values():
        if stored.module.expert is not None:
            first.setdefault(stored.module.expert, stored)
    reader = Reader(checkpoint.read)
    read = [(s.module.name, s.weight(reader), min(_ROWS_READ, s.module.shape[0])) for _, s in sorted(first.items())]
    checkpoint.fetch(ref for _, weight, n_rows in read for ref in weight.first_rows(n_rows))
    taken = [
        reading.refuse_no_numbers(name, weight.open().band(0, n_rows).decoded()[:_ROWS_COMPARED].flatten())
        for name, weight, n_rows in read
    ]
    return torch.stack(taken)


def _match(held: Tensor, rows: Tensor) -> tuple[tuple[int, ...], float]:
    """For each held row [n, width] the nearest of `rows` [m, width], and the smallest margin; 0 where two share one."""
    import torch

    if held.shape[1] != rows.shape[1]:
        return (), 0.0
    # Differences, not products: the distance of equal rows is then exactly 0.
    distances = torch.cdist(held, rows, compute_mode="donot_use_mm_for_euclid_dist")
    numbers = tuple(int(number) for number in distances.argmin(1))
    if len(set(numbers)) < len(numbers):
        return numbers, 0.0
    if rows.shape[0] == 1:
        return numbers, float(distances[0, 0] == 0)
    near, next_near = distances.topk(2, largest=False).values.unbind(1)
    margins = torch.where(next_near > 0, 1 - near / next_near.clamp_min(1e-30), torch.zeros_like(near))
    return numbers, float(margins.min())
