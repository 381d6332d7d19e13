"""embed() and finish(): what a target hands to its MTP layer for a text, layer by layer: it need not fit into memory.

    embed      the rows of the tokens
    layer      self-attention of each window, then experts, one expert after another, for the tokens of all windows
    norm       the final one: what vLLM's DeepSeekMTP takes as the previous hidden state

Modules are transformers' own (models/glm_moe_dsa, 5.23.0), weights are decoded by our formats, arithmetic is float32.
transformers' loader is not used: it cannot read every layout, and leaves what it does not find at random values.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mtpforge import errors
from mtpforge.errors import MtpforgeError, shown
from mtpforge.nextn import layer as stages
from mtpforge.nextn.embedding import embedding
from mtpforge.nextn.sequences import Sequence
from mtpforge.nextn.target import Target
from mtpforge.report import OnProgress, Progress
from mtpforge.units import memory_size

if TYPE_CHECKING:
    from torch import Tensor

_TORCH_BYTES: Final = 500 << 20  # torch and transformers themselves
_TOKENS: Final = 1024  # that go through a norm or a dense layer at a time


@dataclass(frozen=True, slots=True)
class Entering:
    """A window before some layer: its tokens, int64 [n], and the residual stream, float32 [n, hidden]."""

    token_ids: Tensor
    states: Tensor


def embed(target: Target, windows: Iterable[list[int]]) -> list[Entering]:
    """Windows of token ids before layer 0."""
    import torch

    rows = embedding(target.checkpoint, target.checkpoint, target.config.hidden_size)
    if rows.n_tokens < target.config.vocab_size:
        raise MtpforgeError(
            f"the embedding has {rows.n_tokens:,} tokens, config.json says {target.config.vocab_size:,}",
            where=shown(target.checkpoint.label),
            why="config.json and tensors are of different models",
            fix="download the target again",
        )
    return [Entering(ids := torch.tensor(window), rows.rows(ids)) for window in windows]


def finish(
    target: Target, entering: list[Entering], first: int, on_progress: OnProgress | None = None
) -> Iterator[Sequence]:
    """A sequence a window, positions from 0, from states before layer `first`, which must have an indexer of its own.

    Nothing comes before the last layer is done.
    """
    import torch

    lengths = [len(window.token_ids) for window in entering]
    stream = _last_states(target, entering, first, on_progress)
    norm = target.last_norm()
    for window, states in zip(entering, torch.split(stream, lengths), strict=True):
        with torch.inference_mode():  # not around the yield: it would hold for whoever takes the sequence
            hidden = torch.cat([norm(some) for some in torch.split(states, _TOKENS)])
        _refuse_no_numbers(target, hidden)
        yield Sequence(window.token_ids, torch.arange(len(hidden)), hidden)


def _last_states(target: Target, entering: list[Entering], first: int, on_progress: OnProgress | None) -> Tensor:
    """The residual stream after the last layer, float32 [tokens of all windows, hidden]."""
    import torch

    lengths = [len(window.token_ids) for window in entering]
    stream = torch.cat([window.states for window in entering])
    chosen = _Chosen()
    with torch.inference_mode():
        for number in range(first, target.n_layers):
            block = target.block(number)
            _attend(block, number, stream, lengths, chosen)
            stream = _feed(block, stream)
            if on_progress:
                on_progress(Progress("layers", number + 1 - first, target.n_layers - first, "items"))
    return stream


def memory_bytes(target: Target, lengths: list[int]) -> int:
    """About what windows of these lengths take: activations of all tokens, and the largest part of a layer."""
    c, longest = target.config, max(lengths)
    streams = 4 * 4 * sum(lengths) * c.hidden_size  # embedded, before and after a layer, routed rows of one expert
    query = c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)
    value = c.num_attention_heads * c.v_head_dim
    inner = c.q_lora_rank * query + c.kv_lora_rank * (query + value) + value * c.hidden_size
    weights = 4 * max(inner, 3 * c.hidden_size * c.intermediate_size)
    keys = 2 * 4 * longest * (query + value)
    scores = 4 * stages.ROWS * longest * (2 * c.index_n_heads + 2 * c.num_attention_heads)
    choices = 4 * sum(n * min(n, c.index_topk) for n in lengths if n > c.index_topk)
    return int(_TORCH_BYTES + streams + weights + keys + scores + choices)


def refuse_small_memory(n_bytes: int) -> None:
    """Refuse what this machine's memory cannot hold."""
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if n_bytes > held:
        raise MtpforgeError(
            f"about {memory_size(n_bytes)} of memory are needed, this machine has {memory_size(held)}",
            where="option `--tokens`",
            why="the activations of all tokens are held, and one layer at a time",
            fix="fewer tokens with `--tokens`, or shorter windows with `--length`",
            code=errors.MACHINE,
        )


class _Chosen:
    """Keys that the last layer with an indexer chose, for the layers after it that have none.

    Kept only where there was a choice: index_topk is 2,048, and in a window of as many tokens every key is chosen. In a
    longer one, which of several keys with equal scores are chosen is nowhere defined, and many scores are zero: the
    indexer ends in a ReLU.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], Tensor] = {}

    def give(self, place: tuple[int, int], n_keys: int, n_rows: int, most: int) -> Tensor:
        """int32 [1, rows, keys chosen] for the rows at a place: window and first row."""
        import torch

        if n_keys > most:
            return self._held[place]
        return torch.arange(n_keys, dtype=torch.int32).expand(1, n_rows, n_keys)

    def keep(self, place: tuple[int, int], n_keys: int, most: int, indices: Tensor) -> None:
        """Replace what was kept at this place."""
        if n_keys > most:
            self._held[place] = indices


def _attend(block: stages.Block, number: int, stream: Tensor, lengths: list[int], chosen: _Chosen) -> None:
    """Add self-attention in place, window by window, a few rows at a time, each token seeing those before it."""
    import torch

    most = block.config.index_topk
    attention = stages.self_attention(block, number)
    shares = attention.module.skip_topk
    for window, states in enumerate(torch.split(stream, lengths)):

        def prior(first: int, n_keys: int, n_rows: int, window: int = window) -> Tensor | None:
            return chosen.give((window, first), n_keys, n_rows, most) if shares else None

        done = 0
        for n_rows, indices in attention.add(states, torch.arange(len(states)), prior):
            chosen.keep((window, done), done + n_rows, most, indices)
            done += n_rows


def _feed(block: stages.Block, stream: Tensor) -> Tensor:
    """The second half of a layer, the residual stream included: experts, or one dense network."""
    if block.n_experts:
        return stages.output(block, stream, stages.route(block, stream))
    import torch
    from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaMLP

    norm = block.norm("post_attention_layernorm")
    dense = block.part("mlp", lambda: GlmMoeDsaMLP(block.config))
    for some in torch.split(stream, _TOKENS):
        some.add_(dense(norm(some)))
    return stream


def _refuse_no_numbers(target: Target, hidden: Tensor) -> None:
    if not bool(hidden.isfinite().all()):
        raise MtpforgeError(
            "the target's hidden states are no numbers",
            where=shown(target.checkpoint.label),
            why="its weights are finite; what it computes from this text is not",
            fix="check the target: `mtpforge inspect`, or capture other text",
        )
