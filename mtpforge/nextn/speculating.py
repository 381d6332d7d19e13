"""steps(): k steps of the nextn layer beside the states of a target, for every row of every sequence at once.

    step 1   row i: hidden state i of the target and token i+1, at position i; it predicts token i+2
    step j   row i: the state that step j-1 gave for it and token i+j, at position i+j-1; it predicts token i+1+j

The state that goes on is the one after shared_head.norm (`post-norm`: vLLM 0.24 and later) or the one before
(`pre-norm`: 0.23). Row i attends to rows 0 to i of step 1 and to its own rows of later steps; with
index_share_for_mtp_iteration to what the indexer chose for it in step 1, so not to later steps. A row's tokens are the
text's, or those that it draws itself; each row is a cycle of its own that begins there.
Source: vLLM 0.33.0, v1/spec_decode/llm_base_proposer.py and model_executor/models/deepseek_mtp.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from mtpforge.families import family_of
from mtpforge.nextn import layer as layers
from mtpforge.nextn.layer import Attention, Block, Routed
from mtpforge.report import OnProgress

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.cache_utils import DynamicCache

    from mtpforge.nextn.embedding import Embedding
    from mtpforge.nextn.sequences import Sequence as Tokens

Recycled: TypeAlias = Literal["post-norm", "pre-norm"]
RECYCLED: Final = ("post-norm", "pre-norm")
# States of a step, float32 [n, hidden], after the norm -> the tokens that they draw, int64 [n].
Draw: TypeAlias = Callable[["Tensor"], "Tensor"]

_SHARED: Final = "index_share_for_mtp_iteration"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of all rows, sequence after sequence.

    states: float32 [n, hidden], what the head is given. routed: the experts of every row. is_known: bool [n], rows
    whose tokens lie within their sequence; the others are computed and mean nothing.
    """

    states: Tensor
    routed: Routed
    is_known: Tensor


@dataclass(slots=True)
class _Past:
    """What later steps need of one sequence.

    shared: keys and values of step 1, float32 [1, 1, n, width] each, and keys of the indexer [1, n, width]. chosen: of
    every piece of ROWS rows the keys of step 1 that each row attends to, int32 [1, rows, keys]. own: of every piece
    what its rows made in each later step, as shared.
    """

    shared: tuple[Tensor, ...]
    chosen: list[Tensor]
    own: list[list[tuple[Tensor, ...]]] = field(default_factory=list)


def steps(
    nextn: Block,
    embedding: Embedding,
    sequences: Sequence[Tokens],
    k: int,
    *,
    recycled: Recycled = "post-norm",
    draw: Draw | None = None,
    workers: int = 1,
    on_progress: OnProgress | None = None,
) -> Iterator[Step]:
    """The steps of a layer, 1 to k. draw: None for the tokens of the text, whose rows of the embedding are local."""
    import torch

    family = family_of(nextn.checkpoint.config)
    shares = bool(family.text(nextn.checkpoint.config).get(_SHARED))
    n_rows = sum(len(sequence.token_ids) - 1 for sequence in sequences)
    rows = layers.enter(nextn, embedding, sequences, n_rows)
    pasts: list[_Past] = []
    for number in range(1, k + 1):
        attention = layers.self_attention(nextn)
        if number == 1:
            pasts = _first(attention, rows.x, rows.positions)
        else:
            _later(attention, rows.x, rows.positions, pasts, number, shares=shares)
        del attention
        routed = layers.route(nextn, rows.x)
        pre = layers.output(nextn, rows.x, routed, on_progress, workers=workers)
        norm = nextn.norm("shared_head.norm")
        with torch.inference_mode():
            post = torch.cat([norm(some) for some in torch.split(pre, layers.ROWS)])
        yield Step(post, routed, _known(rows.positions, number))
        if number == k:
            return
        tokens = _text_tokens(sequences, number + 1) if draw is None else draw(post)
        embedding.fetch(tokens)
        at = torch.cat(rows.positions) + number
        with torch.inference_mode():
            rows.x[:] = layers.entrance(nextn, embedding).rows(tokens, at, post if recycled == "post-norm" else pre)


def _known(positions: tuple[Tensor, ...], number: int) -> Tensor:
    """Rows i for which token i + number is there, and the one that is predicted lies at most one beyond."""
    import torch

    return torch.cat([torch.arange(len(at)) <= len(at) - number for at in positions])


def _text_tokens(sequences: Sequence[Tokens], ahead: int) -> Tensor:
    """Token i + ahead of every row i, any token beyond the end."""
    import torch

    found = []
    for sequence in sequences:
        ids = sequence.token_ids[ahead:]
        found.append(torch.cat((ids, ids.new_zeros(len(sequence.token_ids) - 1 - len(ids)))))
    return torch.cat(found)


def _first(attention: Attention, x: Tensor, positions: tuple[Tensor, ...]) -> list[_Past]:
    """Attention of step 1, added in place; what later steps need of it."""
    import torch
    from transformers.cache_utils import DynamicCache

    pasts = []
    for states, at in zip(torch.split(x, [len(at) for at in positions]), positions, strict=True):
        cache = DynamicCache(config=attention.config)
        chosen = [keys for _, keys in attention.add(states, at, past=cache)]
        pasts.append(_Past(_held(cache), chosen, [[] for _ in chosen]))
    return pasts


def _held(cache: DynamicCache) -> tuple[Tensor, ...]:
    layer: Any = cache.layers[0]
    index = () if getattr(layer, "indexer_keys", None) is None else (layer.indexer_keys,)
    return (layer.keys, layer.values, *index)


def _later(
    attention: Attention,
    x: Tensor,
    positions: tuple[Tensor, ...],
    pasts: list[_Past],
    number: int,
    *,
    shares: bool,
) -> None:
    """Attention of a later step, added in place: each row to the rows before it in step 1, and to its own."""
    import torch

    if shares:
        attention.module.indexer = None
    with torch.inference_mode():
        for states, at, past in zip(torch.split(x, [len(at) for at in positions]), positions, pasts, strict=True):
            for piece, some in enumerate(torch.split(states, layers.ROWS)):
                first = piece * layers.ROWS
                where = at[first : first + len(some)] + number - 1
                _add(attention, some, where, first, past, piece, shares=shares)


def _add(attention: Attention, some: Tensor, at: Tensor, first: int, past: _Past, piece: int, *, shares: bool) -> None:
    """Rows from `first` on of one sequence."""
    import torch
    from transformers.cache_utils import DynamicCache

    n_rows, before = len(some), first + len(some)
    own = [] if shares else past.own[piece]
    cache = DynamicCache(config=attention.config)
    keys, values, *index = (
        torch.cat((_rows(part, 0, before), *(each[n] for each in own)), _axis(part))
        for n, part in enumerate(past.shared)
    )
    cache.update(keys, values, 0)
    if index and not shares:
        cache.update_indexer(index[0], 0)
    causal = torch.arange(before) <= torch.arange(first, before)[:, None]
    itself = torch.eye(n_rows, dtype=torch.bool)
    mask = torch.cat((causal, *(itself for _ in range(len(own) + 1))), 1)[None, None]
    output, _, _ = attention.module(
        *(attention.norm(some)[None], attention.rotary(some[None], at[None]), mask, cache, at[None]),
        prev_topk_indices=past.chosen[piece] if shares else None,
    )
    some.add_(output[0])
    if not shares:
        past.own[piece].append(tuple(_rows(part, -n_rows, None) for part in _held(cache)))


def _axis(part: Tensor) -> int:
    """Of the keys: keys and values are [1, 1, n, width], keys of the indexer [1, n, width]."""
    return part.ndim - 2


def _rows(part: Tensor, first: int, last: int | None) -> Tensor:
    return part[..., first:last, :]
