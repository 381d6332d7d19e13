"""The nextn layer on calibration inputs, stage by stage, so that a full-size layer runs in little memory.

    enter      row i: embedding of token i+1 (zeros at position 0) through enorm, hidden state i through hnorm, both
               through eh_proj; the last token of a sequence has no next one and makes no row
    attend     + self-attention of the normed rows of one sequence, the indexer's choice of keys included
    route      the router's choice of experts and their gate weights, for the normed rows
    experts    one expert after another: read, decoded, run on the tokens that are routed to it, overwritten; by several
               threads, whose results are taken in the order of the experts

The modules are transformers' own (models/glm_moe_dsa, 5.23.0), the weights decoded by our formats, float32 throughout.
What goes in and how is vLLM's DeepSeekMultiTokenPredictorLayer (vllm/model_executor/models/deepseek_mtp.py, 0.33.0).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.families.counting import expert_numbers
from mtpforge.nextn.configuring import making, of_one_layer
from mtpforge.nextn.embedding import Embedding, Embeds
from mtpforge.nextn.filling import by_stem, empty, fill
from mtpforge.nextn.threads import in_order
from mtpforge.report import OnProgress, Progress
from mtpforge.weights.compiling import kernels_for

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.cache_utils import DynamicCache
    from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig

    from mtpforge.nextn.inputs import Sequence
    from mtpforge.weights.kernels import RowKernels

ROWS: Final = 256  # of a sequence that attend at a time: index scores of 32 heads and 2,048 keys take 64 MiB
_TOKENS: Final = 1024  # that go through a norm or an expert at a time
_MOST_BYTES: Final = 1 << 30  # of the activations of all tokens, and of the keys and values of one sequence


@dataclass(frozen=True, slots=True)
class Block:
    """A decoder layer with routed experts where it is stored; nothing of it is read yet.

    config: transformers' configuration of a model of this one layer. kernels: gives every thread its own. swapped:
    modules, by local name, that are not its own but those of `other`: what a module does to the whole is seen so.
    """

    checkpoint: Checkpoint
    prefix: str
    config: GlmMoeDsaConfig
    n_experts: int
    device: str
    kernels: Callable[[], RowKernels | None]
    swapped: tuple[str, ...] = ()
    other: Block | None = None

    def part(self, name: str, make: Callable[[], nn.Module]) -> Any:  # noqa: ANN401 -- transformers has no types
        """One of transformers' modules with the weights of `name`."""
        with making(self.checkpoint, f"`{name}`"):
            module = empty(make, self.device)
        fill(module, self.checkpoint, f"{self.prefix}{name}.", kernels=self.kernels())
        for local in self.swapped:
            if (other := self.other) is not None and f"{local}.".startswith(f"{name}."):
                inner = module.get_submodule(local[len(name) + 1 :])
                fill(inner, other.checkpoint, f"{other.prefix}{local}.", kernels=other.kernels())
        return module

    def norm(self, name: str) -> Any:  # noqa: ANN401 -- transformers has no types
        """One of the norms of the hidden size."""
        from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaRMSNorm

        return self.part(name, lambda: GlmMoeDsaRMSNorm(self.config.hidden_size, self.config.rms_norm_eps))


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention of a layer: its norm, transformers' module, and the rotary embedding."""

    config: GlmMoeDsaConfig
    norm: Any
    module: Any
    rotary: Any

    def add(
        self,
        states: Tensor,
        positions: Tensor,
        prior: Callable[[int, int, int], Tensor | None] = lambda *_: None,
        past: DynamicCache | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Add to the states of one sequence, float32 [n, hidden], in place, a few rows at a time.

        Each row sees itself and those before it. positions: int64 [n]. prior(first row, keys, rows): the keys that an
        earlier layer chose for these rows, where the layer has no indexer. past: empty, for whoever goes on from the
        keys that it is filled with. After each step: rows, and the keys that they were given, int32 [1, rows, chosen].
        """
        import torch
        from transformers.cache_utils import DynamicCache

        past = DynamicCache(config=self.config) if past is None else past
        for first in range(0, len(states), ROWS):
            some, at = states[first : first + ROWS], positions[None, first : first + ROWS]
            n_keys = first + len(some)
            seen = torch.arange(n_keys, device=some.device)
            causal = (seen <= seen[first:, None])[None, None]
            with torch.inference_mode():  # not around the yield: it would hold for whoever takes the rows
                output, _, chosen = self.module(
                    *(self.norm(some)[None], self.rotary(some[None], at), causal, past, at),
                    prev_topk_indices=prior(first, n_keys, len(some)),
                )
                some.add_(output[0])
            yield len(some), chosen


@dataclass(frozen=True, slots=True)
class Rows:
    """Activations of all tokens, float32 [n, hidden]; positions: of each sequence in turn, int64 [rows of it]."""

    x: Tensor
    positions: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Routed:
    """Experts of every row, int64 [n, top_k], in no order; their gate weights, float32 [n, top_k], as they multiply."""

    experts: Tensor
    gates: Tensor


# Called with the number of an expert, its rows int64 [m], their gate weights [m] and its outputs [m, hidden], float32.
# An expert of many tokens comes in several calls, one that nobody is routed to in none.
OnExpert = Callable[[int, "Tensor", "Tensor", "Tensor"], None]


def block(checkpoint: Checkpoint, number: int | None = None, device: str = "cpu") -> Block:
    """Layer `number` of a checkpoint, its nextn layer by default. MtpforgeError where the config is not usable."""
    family = family_of(checkpoint.config)
    prefix = family.prefix(family.layer(checkpoint.config) if number is None else number)
    n_experts = len(expert_numbers(family, (name for name in checkpoint.names if name.startswith(prefix))))
    config = of_one_layer(family, checkpoint, n_experts)
    return Block(checkpoint, prefix, config, n_experts, device, expert_kernels(config, n_experts))


def as_served(attention: nn.Module, eps: float) -> nn.Module:
    """The attention with the epsilon of its latent norms as engines have it.

    transformers (5.23.0) makes q_a_layernorm and kv_a_layernorm with its default of 1e-6, whatever rms_norm_eps says;
    vLLM (0.33.0, deepseek_v2.py) and SGLang with rms_norm_eps, and it is theirs that the draft runs in.
    """
    for name in ("q_a_layernorm", "kv_a_layernorm"):
        attention.get_submodule(name).variance_epsilon = eps  # type: ignore[assignment]  # a float of transformers'
    return attention


@dataclass(frozen=True, slots=True)
class Entrance:
    """What stands before the decoder layer: both norms and the projection."""

    embedding: Embeds
    enorm: Any
    hnorm: Any
    eh_proj: Any

    def rows(self, token_ids: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        """Float32 [n, hidden] of the next tokens int64 [n], at positions [n], and the states [n, hidden] before."""
        import torch

        found = []
        for ids, at, states in zip(
            *(torch.split(each, _TOKENS) for each in (token_ids, positions, hidden)), strict=True
        ):
            embedded = self.embedding.rows(ids)
            embedded[at == 0] = 0.0  # before the norm, as vLLM does
            both = (embedded.to(self.eh_proj.weight.device), states.to(self.eh_proj.weight.device))
            found.append(self.eh_proj(torch.cat((self.enorm(both[0]), self.hnorm(both[1])), -1)))
        return torch.cat(found)


def entrance(nextn: Block, embedding: Embeds) -> Entrance:
    """The entrance of a nextn layer."""
    from torch import nn

    width = nextn.config.hidden_size
    eh_proj = nextn.part("eh_proj", lambda: nn.Linear(2 * width, width, bias=False))
    return Entrance(embedding, nextn.norm("enorm"), nextn.norm("hnorm"), eh_proj)


def enter(nextn: Block, embedding: Embedding, inputs: Iterable[Sequence], n_rows: int) -> Rows:
    """What the decoder layer of the nextn layer is given for these inputs, of `n_rows` rows in all."""
    import torch

    width = nextn.config.hidden_size
    _refuse_too_many(n_rows, 4 * width, "the inputs have {} tokens", "fewer")
    door = entrance(nextn, embedding)
    x, positions, end = torch.empty(n_rows, width, device=nextn.device), [], 0
    with torch.inference_mode():
        for sequence in inputs:
            at = sequence.positions[:-1]
            for first in range(0, len(at), _TOKENS):
                last = min(first + _TOKENS, len(at))
                ids = sequence.token_ids[first + 1 : last + 1]
                x[end : end + last - first] = door.rows(ids, at[first:last], sequence.hidden[first:last])
                end += last - first
            positions.append(at.to(x.device))
    return Rows(x, tuple(positions))


def attend(layer: Block, rows: Rows, on_progress: OnProgress | None = None) -> None:
    """Add self-attention to the rows, in place, sequence by sequence, each token seeing those before it."""
    config, done = layer.config, 0
    per_key = (
        4 * config.num_attention_heads * (config.v_head_dim + 2 * config.qk_nope_head_dim + config.qk_rope_head_dim)
    )
    for positions in rows.positions:
        _refuse_too_many(len(positions), per_key, "a sequence of the inputs has {} tokens", "shorter sequences of")
    attention = self_attention(layer)
    for positions in rows.positions:
        for n_rows, _ in attention.add(rows.x[done : done + len(positions)], positions):
            done += n_rows
            if on_progress:
                on_progress(Progress("attend", done, len(rows.x), "items"))


def self_attention(layer: Block, number: int = 0) -> Attention:
    """The layer's own, `number` by its config."""
    from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm

    config = layer.config
    module = layer.part("self_attn", lambda: glm.GlmMoeDsaAttention(config, number))
    rotary = glm.GlmMoeDsaRotaryEmbedding(config).to(layer.device)
    return Attention(config, layer.norm("input_layernorm"), as_served(module, config.rms_norm_eps), rotary)


def route(layer: Block, x: Tensor, kept: tuple[int, ...] | None = None) -> Routed:
    """The experts of rows that attention was added to, by transformers' own router.

    kept: experts that stay, as many of every group; they are then numbered by their place there.
    """
    import torch
    from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaTopkRouter

    norm = layer.norm("post_attention_layernorm")
    router = layer.part("mlp.gate", lambda: GlmMoeDsaTopkRouter(layer.config))
    if kept is not None:
        numbers = torch.tensor(kept, device=x.device)
        router.weight.data, router.num_experts = router.weight.data[numbers], len(kept)
        router.e_score_correction_bias = router.e_score_correction_bias[numbers]
    with torch.inference_mode():
        answers = [router(norm(some)) for some in torch.split(x, _TOKENS)]
    return Routed(torch.cat([chosen for _, _, chosen in answers]), torch.cat([gates for _, gates, _ in answers]))


def each_expert(
    layer: Block,
    x: Tensor,
    routed: Routed,
    on_expert: OnExpert,
    on_progress: OnProgress | None = None,
    *,
    kept: tuple[int, ...] | None = None,
    workers: int = 1,
) -> None:
    """Run every expert on the rows that are routed to it, in the order of their numbers.

    kept: the stored expert of each number, None for itself. workers: threads; what `on_expert` is given, by the thread
    that called, and in what order, does not depend on how many.
    """
    import torch

    numbers = tuple(range(layer.n_experts)) if kept is None else kept
    run = Experts(layer)
    norm = layer.norm("post_attention_layernorm")

    def outputs(number: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        places, slots = (routed.experts == number).nonzero(as_tuple=True)
        if not len(places):
            return []
        expert = run.loaded(numbers[number])
        pieces = zip(torch.split(places, _TOKENS), torch.split(slots, _TOKENS), strict=True)
        return [(some, routed.gates[some, slot], expert(norm(x[some]))) for some, slot in pieces]

    for number, found in enumerate(in_order(outputs, range(len(numbers)), workers)):
        with torch.inference_mode():
            for some, gates, made in found:
                on_expert(number, some, gates, made)
        if on_progress:
            on_progress(Progress("experts", number + 1, len(numbers), "items"))


class Experts:
    """Experts of a layer, one at a time for each thread."""

    def __init__(self, layer: Block) -> None:
        self._layer, self._names = layer, by_stem(layer.checkpoint)
        self._held = threading.local()

    def loaded(self, number: int) -> Any:  # noqa: ANN401 -- transformers has no types
        """A stored expert as transformers' module; this thread's next call overwrites them."""
        from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaMLP

        layer = self._layer
        if not hasattr(self._held, "module"):
            config = layer.config
            self._held.module = empty(lambda: GlmMoeDsaMLP(config, config.moe_intermediate_size), layer.device)
        at = f"{layer.prefix}mlp.experts.{number}."
        fill(self._held.module, layer.checkpoint, at, kernels=layer.kernels(), names=self._names)
        return self._held.module


def output(
    layer: Block,
    x: Tensor,
    routed: Routed,
    on_progress: OnProgress | None = None,
    *,
    kept: tuple[int, ...] | None = None,
    workers: int = 1,
) -> Tensor:
    """What the decoder layer gives for rows that attention was added to: float32 [n, hidden], before any last norm."""
    total = with_shared(layer, x)

    def add(_: int, places: Tensor, gates: Tensor, outputs: Tensor) -> None:
        total.index_add_(0, places, gates[:, None] * outputs)

    each_expert(layer, x, routed, add, on_progress, kept=kept, workers=workers)
    return total


def with_shared(layer: Block, x: Tensor) -> Tensor:
    """The rows, and what the shared experts add to them: float32 [n, hidden], a copy."""
    import torch
    from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaMLP

    config, total = layer.config, x.clone()
    norm = layer.norm("post_attention_layernorm")
    width = config.moe_intermediate_size * config.n_shared_experts
    shared = layer.part("mlp.shared_experts", lambda: GlmMoeDsaMLP(config, width))
    with torch.inference_mode():
        for some, into in zip(torch.split(x, _TOKENS), torch.split(total, _TOKENS), strict=True):
            into.add_(shared(norm(some)))
    return total


def _refuse_too_many(count: int, bytes_each: int, what: str, less: str) -> None:
    most = _MOST_BYTES // bytes_each
    if count > most:
        raise MtpforgeError(
            what.format(f"{count:,}"),
            where="option `--inputs`",
            why=f"{bytes_each:,} bytes each are held at a time, and {most:,} of this layer's fit into 1 GiB",
            fix=f"capture {less} tokens, at most {most:,}",
        )


def expert_kernels(config: GlmMoeDsaConfig, n_experts: int) -> Callable[[], RowKernels | None]:
    """Compiled kernels to decode so many experts with, where they save time; each thread is given its own."""
    return kernels_for(3 * n_experts * config.hidden_size * config.moe_intermediate_size)
