"""How many drafted tokens a target accepts, on what it says itself, without sampling the draft.

    sampled   the target goes on by sampling; a token of the draft's q is accepted with probability min(1, p / q), so
              step j of a cycle accepts sum min(p, q), weighed by how likely the target's tokens before were to be
              drafted and accepted: prod min(1, q / p). Exact in expectation; every position begins a cycle.
    greedy    the target goes on with its likeliest tokens; a token is accepted where it is the same, a cycle begins
              where the last one ended.

Tokens a cycle are 1 and what is accepted: the target adds one of its own. Everything is by window: windows are
independent, positions of one are not, and the same windows for all drafts make differences paired.
Leviathan et al. 2023 (arXiv 2211.17192); vLLM 0.33.0, v1/sample/rejection_sampler.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from mtpforge.nextn.heads import Head
from mtpforge.nextn.layer import Block
from mtpforge.nextn.sequences import Sequence as Window
from mtpforge.nextn.speculating import Draw, Recycled, Step, steps
from mtpforge.nextn.threads import in_order
from mtpforge.report import OnProgress

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.nextn.embedding import Embedding

_MOST: Final = 1 << 30  # bytes of logits and distributions at a time
_SOME: Final = 256  # rows whose likeliest tokens are looked for at a time


@dataclass(frozen=True, slots=True)
class Text:
    """What a target said: token ids int64 [windows, n], its states [windows, n, hidden], tokens of the prompts."""

    token_ids: Tensor
    states: Tensor
    prompt: int

    @property
    def windows(self) -> list[Window]:
        """Each with its states, positions from 0."""
        at = torch.arange(self.token_ids.shape[1])
        return [Window(ids, at, states) for ids, states in zip(self.token_ids, self.states, strict=True)]


@dataclass(frozen=True, slots=True)
class Accepted:
    """By window, float64. positions [k, windows]: how often step j is reached and accepted, of all cycles.

    variation [windows]: total variation of step 1's distributions and the first draft's, at the same rows; None where
    nothing was drawn.
    """

    positions: Tensor
    variation: Tensor | None = None

    @property
    def length(self) -> Tensor:
        """Tokens a cycle, [windows]."""
        return 1 + self.positions.sum(0)


@dataclass(frozen=True, slots=True)
class Beside:
    """What drafts share: a target's embedding and head, k steps, the state that goes on, threads."""

    embedding: Embedding
    head: Head
    k: int
    recycled: Recycled = "post-norm"
    workers: int = 1


def sampled(
    drafts: Sequence[Block], beside: Beside, text: Text, temperature: float, on_progress: OnProgress | None = None
) -> list[Accepted]:
    """Of every draft, beside a text that the target drew at this temperature after its prompts."""
    k, n_rows = beside.k, text.token_ids.shape[1] - 1
    made = [[step.states for step in _steps(draft, beside, text, None, on_progress)] for draft in drafts]
    rows = torch.arange(text.prompt - 1, n_rows - k)
    size = max(1, _MOST // (2 * 4 * beside.head.n_tokens * k * (1 + len(drafts))))  # logits and chances, float32
    found: list[tuple[Tensor, Tensor]] = []
    for window, (ids, states) in enumerate(zip(text.token_ids, text.states, strict=True)):
        parts = []
        for some in torch.split(rows, size):
            given = [states[some + 1 + step] for step in range(k)]
            given += [states_of[window * n_rows + some] for own in made for states_of in own]
            logits = beside.head.logits(given, beside.workers)
            chances = list(in_order(lambda each: (each / temperature).softmax(-1), logits, beside.workers))
            parts.append(_beside(chances, [ids[some + 2 + step, None] for step in range(k)]))
        reached, apart = (torch.cat(each, -1) for each in zip(*parts, strict=True))
        found.append((reached.mean(-1), apart.mean(-1)))
    positions, variations = (torch.stack(each, -1) for each in zip(*found, strict=True))
    return [Accepted(*each) for each in zip(positions, variations, strict=True)]


def _beside(chances: Sequence[Tensor], seen: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """By draft and row, float64: how step j is reached and accepted [drafts, k, rows], total variation [drafts, rows].

    chances: k distributions [rows, vocabulary] of the target, then of each draft.
    """
    k = len(seen)
    theirs, *own = (chances[first : first + k] for first in range(0, len(chances), k))
    apart = [(each[0] - own[0][0]).abs().sum(-1, dtype=torch.float64) / 2 for each in own]
    return torch.stack([_reached(theirs, each, seen) for each in own]), torch.stack(apart)


def _reached(theirs: Sequence[Tensor], own: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
    """[k, rows]: distributions [rows, vocabulary] of target and draft, the target's tokens [rows, 1]."""
    weight = torch.ones(len(seen[0]), dtype=torch.float64)
    found = []
    for p, q, tokens in zip(theirs, own, seen, strict=True):
        found.append(weight * torch.minimum(p, q).sum(-1, dtype=torch.float64))
        weight = weight * (q.gather(-1, tokens) / p.gather(-1, tokens)).squeeze(-1).clamp(max=1).double()
    return torch.stack(found)


def greedy(draft: Block, beside: Beside, text: Text, on_progress: OnProgress | None = None) -> Accepted:
    """Beside a text of the target's likeliest tokens after its prompts; the draft's tokens are its likeliest."""
    n_windows, length = text.token_ids.shape
    drafted: list[Tensor] = []

    def draw(states: Tensor) -> Tensor:
        drafted.append(_likeliest(states, beside))
        return drafted[-1]

    made = _steps(draft, beside, text, draw, on_progress)
    drafted.append(_likeliest(made[-1].states, beside))
    tokens = torch.stack(drafted).view(beside.k, n_windows, length - 1)
    taken = [_cycles(tokens[:, n], ids, text.prompt) for n, ids in enumerate(text.token_ids)]
    return Accepted(
        torch.stack([(each > step).double().mean() for step in range(beside.k) for each in taken]).view(beside.k, -1)
    )


def _cycles(drafted: Tensor, ids: Tensor, prompt: int) -> Tensor:
    """How many tokens each cycle accepts. drafted: int64 [k, rows]; row i drafts tokens i + 2 to i + 1 + k."""
    own, theirs = drafted.tolist(), ids.tolist()
    at, found = prompt - 1, list[int]()
    while at + 1 + len(own) < len(theirs):
        taken = 0
        while taken < len(own) and own[taken][at] == theirs[at + 2 + taken]:
            taken += 1
        found.append(taken)
        at += taken + 1
    return torch.tensor(found)


def _steps(draft: Block, beside: Beside, text: Text, draw: Draw | None, on_progress: OnProgress | None) -> list[Step]:
    with torch.inference_mode():
        return list(
            steps(
                *(draft, beside.embedding, text.windows, beside.k),
                recycled=beside.recycled,
                draw=draw,
                workers=beside.workers,
                on_progress=on_progress,
            )
        )


def _likeliest(states: Tensor, beside: Beside) -> Tensor:
    logits = (beside.head.logits([some], beside.workers)[0] for some in torch.split(states, _SOME))
    return torch.cat([each.argmax(-1) for each in logits])
