"""Which experts of the source a draft holds: found by the rows of the router, which name them."""

from __future__ import annotations

import torch
from torch import Tensor

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.report import Check
from mtpforge.sourcing import StoredLayer
from mtpforge.verifying.expectations import Subject
from mtpforge.verifying.names import some
from mtpforge.weights import Reader


def kept_experts(subject: Subject, source: Checkpoint, layer: StoredLayer) -> tuple[tuple[int, ...], Check]:
    """Source expert of every draft expert, and what was found.

    Where the router cannot tell (rows that the source lacks), experts are taken to be in the source's order as far as
    both have them, and the check fails.
    """
    routers = [w for w in subject.weights if w.module.kind == "router"]
    in_order = tuple(range(min(subject.n_experts, layer.n_experts)))
    if not routers or not all(subject.fits(w) and w.quantization.is_dense for w in routers):
        return in_order, Check("router", "failed", "the router is not as expected", subject.anew)
    router = routers[0]
    held = Reader(subject.draft.read).tensor(subject.parts(router)["weight"])
    stored = layer.modules[router.module.name]
    source.fetch(stored.parts.values())
    rows = torch.cat(list(stored.weight(Reader(source.read)).decoded())).to(held.dtype)
    found = _match(held, rows)
    lost = [expert for expert, number in enumerate(found) if number is None]
    if lost:
        detail = f"rows {some(lost)} of the router are not the source's"
        return in_order, Check("router", "failed", detail, subject.anew)
    numbers = tuple(number for number in found if number is not None)
    if numbers == tuple(range(layer.n_experts)):
        return numbers, Check("router", "passed", f"{len(numbers)} rows, the source's in order")
    what = f"{len(numbers)} of the source's {layer.n_experts} experts: {some(numbers)}"
    if list(numbers) != sorted(numbers):
        return numbers, Check("router", "warning", f"rows in another order than the source's; {what}")
    return numbers, Check("router", "passed", what)


def _match(held: Tensor, rows: Tensor) -> list[int | None]:
    """For each held row the source's row of the same bytes; equal rows are given out in order."""
    by_bytes: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        by_bytes.setdefault(_bytes(row), []).append(number)
    left = {content: iter(numbers) for content, numbers in by_bytes.items()}
    return [next(left.get(_bytes(row), iter(())), None) for row in held]


def _bytes(row: Tensor) -> bytes:
    return row.contiguous().view(torch.uint8).numpy().tobytes()
