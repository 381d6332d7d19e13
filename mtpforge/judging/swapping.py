"""swaps(): which module costs what, found by putting one of the draft's into the reference at a time.

    weight error       |W' - W| / |W|, Frobenius, of decoded weights; 1 for zeros, 1.4 for the weight of another module
    state error        |h' - h| / |h| of what step 1 gives before the last norm, with this module alone the draft's
    total variation    of the next-token distributions of step 1, with and without it

All modules of a kind together too. Of single projections of experts all have the first two; those that move the states
most have the third. Where experts were dropped, the reference is run without them, and what that alone costs is a row.
The rows of all variants pass through one sweep over the reference's experts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from mtpforge.judging.distances import distances
from mtpforge.judging.pairs import ROUTER, Pair, ratio, relative
from mtpforge.judging.sampling import Sample
from mtpforge.nextn import layer as layers
from mtpforge.nextn.embedding import Embedding
from mtpforge.nextn.heads import Head
from mtpforge.nextn.layer import Block, Experts, Routed
from mtpforge.nextn.threads import in_order
from mtpforge.report import OnProgress, Progress

ROWS: Final = 256  # that modules are swapped on
WORST: Final = 12  # projections of experts whose total variation is measured
ROUTED: Final = "routed experts"
DROPPED: Final = "dropped experts"
_EXPERT: Final = "mlp.experts.{}.{}"
_PARTS: Final = ("gate_proj", "up_proj", "down_proj")
_AFTER: Final = "post_attention_layernorm"
_ATTENTION: Final = ("self_attn", "input_layernorm")
_ENTRANCE: Final = ("eh_proj", "enorm", "hnorm")


@dataclass(frozen=True, slots=True)
class Swap:
    """One module of the draft in the reference, or all of a kind: `module` is "" then.

    module: local name, experts by the draft's number. weight_error: of a kind the largest, None for dropped experts.
    total_variation: None where it was not measured. n_rows: how many rows the module saw.
    """

    kind: str
    module: str
    weight_error: float | None
    state_error: float
    total_variation: float | None
    n_rows: int


def swaps(
    pair: Pair,
    embedding: Embedding,
    head: Head,
    sample: Sample,
    *,
    workers: int = 1,
    on_progress: OnProgress | None = None,
) -> list[Swap]:
    """Kinds, then single modules; of each those first that cost most."""
    run = _Run(pair, embedding, sample.cut(ROWS), workers)
    kinds = pair.kinds()
    errors = {name: pair.weight_error(name) for names in kinds.values() for name in names}
    tried = [(kind, "", tuple(name for name in names if errors[name])) for kind, names in kinds.items()]
    tried += [(kind, name, (name,)) for kind, names in kinds.items() for name in names if errors[name]]
    tried = [each for each in tried if each[2]]
    changed = run.swapped([names for _, _, names in tried])
    found = [
        (Swap(kind, name, max(errors[n] for n in names), run.state_error(pre), None, len(pre)), head_given)
        for (kind, name, names), (pre, head_given) in zip(tried, changed, strict=True)
    ]
    singles, worst = run.experts(on_progress)
    found += run.all_experts(max((each.weight_error or 0.0 for each in singles), default=0.0))
    moved = [(change.swap, run.finished(run.pre.index_add(0, change.rows, change.states))) for change in worst]
    far = distances(head, run.finished(run.pre), [states for _, states in (*found, *moved)], workers=workers)
    measured = [
        replace(swap, total_variation=float(each.total_variation.mean()))
        for (swap, _), each in zip((*found, *moved), far, strict=True)
    ]
    told = {swap.module for swap in measured}
    same = [Swap(k, name, 0.0, 0.0, 0.0, len(run.pre)) for k, names in kinds.items() for name in names]
    left = [swap for swap in (*singles, *same) if swap.module not in told]
    return sorted((*measured, *left), key=_rank)


def _rank(swap: Swap) -> tuple[bool, float, float]:
    return bool(swap.module), -(swap.total_variation or 0.0), -swap.state_error


@dataclass(frozen=True, slots=True)
class _Change:
    """What a projection of an expert does to the states before the last norm: rows int64 [m], states [m, hidden]."""

    swap: Swap
    rows: Tensor
    states: Tensor


class _Run:
    """The reference on some rows, and what it becomes with modules of the draft."""

    def __init__(self, pair: Pair, embedding: Embedding, sample: Sample, workers: int) -> None:
        """pre: what it gives before the last norm, float32 [n, hidden]."""
        self._pair, self._embedding, self._sample, self._workers = pair, embedding, sample, workers
        self._reference, self._draft = pair.reference.block, pair.draft.block
        self._entered = layers.enter(self._reference, embedding, sample.sequences, sample.n_rows)
        self._attended = layers.Rows(self._entered.x.clone(), self._entered.positions)
        layers.attend(self._reference, self._attended)
        self._x = self._attended.x
        self._routed = layers.route(self._reference, self._x, pair.kept)
        self.pre = self._through(self._reference, [self._x], [self._routed])[0]

    def state_error(self, pre: Tensor) -> float:
        """Of states before the last norm."""
        return ratio([(pre, self.pre)])

    def finished(self, pre: Tensor, block: Block | None = None) -> Tensor:
        """What the head is given."""
        norm = (block or self._reference).norm("shared_head.norm")
        with torch.inference_mode():
            return torch.cat([norm(some) for some in torch.split(pre, layers.ROWS)])

    def swapped(self, variants: Sequence[tuple[str, ...]]) -> Iterator[tuple[Tensor, Tensor]]:
        """With these modules of the draft, before and after the last norm; in one sweep but for a norm of experts."""
        blocks = [replace(self._reference, swapped=names, other=self._draft) for names in variants]
        xs = [self._before_experts(block) for block in blocks]
        routed = [self._route(block, x) for block, x in zip(blocks, xs, strict=True)]
        apart = [n for n, names in enumerate(variants) if _AFTER in names]
        made: dict[int, Tensor] = {}
        for numbers in ([n for n in range(len(variants)) if n not in apart], *([n] for n in apart)):
            some = [(blocks[n], xs[n], routed[n]) for n in numbers]
            if some:
                of = some[0][0] if numbers[0] in apart else self._reference
                pres = self._through(of, [x for _, x, _ in some], [r for _, _, r in some], [b for b, _, _ in some])
                made |= dict(zip(numbers, pres, strict=True))
        return ((made[n], self.finished(made[n], block)) for n, block in enumerate(blocks))

    def all_experts(self, weight_error: float) -> Iterator[tuple[Swap, Tensor]]:
        """All routed experts of the draft, and the reference's without dropping any: what both are measured by."""
        if weight_error:
            own = replace(self._draft, swapped=(_AFTER, "mlp.shared_experts"), other=self._reference)
            pre = layers.output(own, self._x, self._routed, workers=self._workers)
            yield Swap(ROUTED, "", weight_error, self.state_error(pre), None, len(pre)), self.finished(pre)
        if self._pair.drops:
            routed = layers.route(self._reference, self._x)
            pre = layers.output(self._reference, self._x, routed, workers=self._workers)
            yield Swap(DROPPED, "", None, self.state_error(pre), None, len(pre)), self.finished(pre)

    def experts(self, on_progress: OnProgress | None) -> tuple[list[Swap], list[_Change]]:
        """Every projection of every expert of the draft, alone; those that move the states most with what they do."""
        ours, theirs = Experts(self._draft), Experts(self._reference)
        norm = self._reference.norm(_AFTER)
        size = float(self.pre.double().norm())

        def measure(number: int) -> list[_Change]:
            rows, slots = (self._routed.experts == number).nonzero(as_tuple=True)
            draft, reference = ours.loaded(number), theirs.loaded(self._pair.kept[number])
            gates = self._routed.gates[rows, slots][:, None]
            found = []
            for part, change in zip(_PARTS, _changes(reference, draft, norm(self._x[rows])), strict=True):
                off = ratio([(getattr(draft, part).weight, getattr(reference, part).weight)])
                moved = relative(float((gates * change).double().norm()), size)
                swap = Swap(ROUTED, _EXPERT.format(number, part), off, moved, None, len(rows))
                found.append(_Change(swap, rows, gates * change))
            return found

        singles: list[Swap] = []
        worst: list[_Change] = []
        for number, made in enumerate(in_order(measure, range(len(self._pair.kept)), self._workers)):
            singles += [change.swap for change in made]
            moving = [change for change in made if change.swap.state_error]
            worst = heapq.nlargest(WORST, [*worst, *moving], key=lambda change: change.swap.state_error)
            if on_progress:
                on_progress(Progress("modules", number + 1, len(self._pair.kept), "items"))
        return singles, worst

    def _before_experts(self, block: Block) -> Tensor:
        """Rows that attention was added to; the reference's where nothing before is swapped."""
        entered = _begins(block.swapped, _ENTRANCE)
        if not entered and not _begins(block.swapped, _ATTENTION):
            return self._x
        rows = self._entered
        if entered:
            rows = layers.enter(block, self._embedding, self._sample.sequences, self._sample.n_rows)
        rows = layers.Rows(rows.x.clone(), rows.positions)
        layers.attend(block, rows)
        return rows.x

    def _route(self, block: Block, x: Tensor) -> Routed:
        """A router of fewer rows than the reference's is the draft's, with the reference's norm before it."""
        if ROUTER in block.swapped:
            return layers.route(replace(self._draft, swapped=(_AFTER,), other=self._reference), x)
        return layers.route(block, x, self._pair.kept)

    def _through(
        self, block: Block, xs: list[Tensor], routed: list[Routed], shared: list[Block] | None = None
    ) -> list[Tensor]:
        """All of these rows through the shared experts, each through its own block's, and the routed ones."""
        blocks = shared or [block] * len(xs)
        total = torch.cat([layers.with_shared(each, x) for each, x in zip(blocks, xs, strict=True)])
        together = Routed(torch.cat([each.experts for each in routed]), torch.cat([each.gates for each in routed]))

        def add(_: int, places: Tensor, gates: Tensor, outputs: Tensor) -> None:
            total.index_add_(0, places, gates[:, None] * outputs)

        layers.each_expert(block, torch.cat(xs), together, add, kept=self._pair.kept, workers=self._workers)
        return list(torch.split(total, [len(x) for x in xs]))


def _begins(names: Sequence[str], with_any: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{each}.") for name in names for each in with_any)


def _changes(reference: Any, draft: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401 -- transformers'
    """How the output of an expert changes with the draft's gate, up, down alone: float32 [n, hidden] each."""
    act = reference.act_fn
    gate, up = reference.gate_proj(x), reference.up_proj(x)
    inner = act(gate) * up
    output = reference.down_proj(inner)
    return (
        reference.down_proj(act(draft.gate_proj(x)) * up) - output,
        reference.down_proj(act(gate) * draft.up_proj(x)) - output,
        draft.down_proj(inner) - output,
    )
