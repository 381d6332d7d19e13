"""How far the next-token distributions of drafts lie from a reference's, row by row.

    total variation    sum |p - q| / 2
    KL divergence      sum p (log p - log q), in nats, p the reference's
    agreement          whether both are largest at the same token
    accepted           sum min(t, q): what rejection sampling accepts of q beside a target's t, at temperature 1

For any t:  sum min(t, p) - sum min(t, q) <= total variation of p and q. So no target can lose more of a draft's
acceptance than the total variation, whatever it is.  Leviathan et al. 2023 (arXiv 2211.17192), section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from mtpforge.nextn.heads import Head
from mtpforge.nextn.threads import in_order
from mtpforge.report import OnProgress, Progress

if TYPE_CHECKING:
    from torch import Tensor

LOGIT_BYTES: Final = 512 << 20  # of all models' logits for the rows that are compared at a time
_SOME: Final = 16  # rows whose distributions a thread holds
_Rows: TypeAlias = list[list[float]]


@dataclass(frozen=True, slots=True)
class Distances:
    """Float64 [n] each. accepted, accepted_reference: None where no target is known."""

    total_variation: Tensor
    divergence: Tensor
    agreement: Tensor
    accepted: Tensor | None
    accepted_reference: Tensor | None


def distances(
    head: Head,
    reference: Tensor,
    drafts: Sequence[Tensor],
    target: Tensor | None = None,
    *,
    workers: int = 1,
    on_progress: OnProgress | None = None,
) -> list[Distances]:
    """Of every draft, for the same rows of all: float32 [n, hidden], as the head is given them."""
    import torch

    given = [reference, *drafts, *(() if target is None else (target,))]
    height = max(LOGIT_BYTES // (4 * head.n_tokens * len(given)), 1)
    found: list[list[_Rows]] = []
    for first in range(0, len(reference), height):
        logits = head.logits([each[first : first + height] for each in given], workers)
        pieces = zip(*(torch.split(each, _SOME) for each in logits), strict=True)
        found += in_order(lambda some: _of_rows(some, len(drafts)), pieces, workers)
        if on_progress:
            on_progress(Progress("predict", min(first + height, len(reference)), len(reference), "items"))
    parts: Iterable[Sequence[_Rows]] = zip(*found, strict=True) if found else [()] * len(drafts)
    rows = [torch.tensor([row for some in each for row in some], dtype=torch.float64) for each in parts]
    return [_distances(each.reshape(-1, 5), target is not None) for each in rows]


def _distances(rows: Tensor, has_target: bool) -> Distances:
    variation, divergence, agreement, accepted, own = rows.unbind(1)
    return Distances(*(variation, divergence, agreement), *((accepted, own) if has_target else (None, None)))


def _of_rows(logits: tuple[Tensor, ...], n_drafts: int) -> list[_Rows]:
    """Of every draft five numbers a row; the last two are zeros where there is no target.

    No tensors: a small one that stays would keep the heap of its thread, distributions of 60 MB that were freed.
    """
    import torch

    reference, drafts, target = logits[0].log_softmax(-1), logits[1 : 1 + n_drafts], logits[1 + n_drafts :]
    p, best = reference.exp(), logits[0].argmax(-1)
    t = target[0].softmax(-1) if target else torch.zeros(1)
    found = []
    for each in drafts:
        logged = each.log_softmax(-1)
        q = logged.exp()
        columns = (
            (p - q).abs().sum(-1, dtype=torch.float64) / 2,
            (p * (reference - logged)).sum(-1, dtype=torch.float64),
            (each.argmax(-1) == best).double(),
            torch.minimum(t, q).sum(-1, dtype=torch.float64),
            torch.minimum(t, p).sum(-1, dtype=torch.float64),
        )
        found.append(torch.stack(columns, 1).tolist())
    return found
