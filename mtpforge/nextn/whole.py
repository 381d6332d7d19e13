"""Whole: a target that fits into memory, all of its layers at once, so that it can go on with a text token by token.

    states       final-normed hidden states of windows, what its MTP layer is handed
    continued    windows and what it says next: the likeliest tokens, or tokens drawn at a temperature

transformers' own model (models/glm_moe_dsa, 5.23.0), weights decoded by our formats, float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mtpforge import errors
from mtpforge.errors import MtpforgeError, shown
from mtpforge.nextn.filling import fill
from mtpforge.nextn.layer import as_served
from mtpforge.nextn.target import Target
from mtpforge.report import OnProgress, Progress
from mtpforge.units import memory_size

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.nextn.heads import Head

_BATCH_BYTES: Final = 1 << 30  # of attention and index scores of the prompts that are taken in together
_ROOM: Final = 1.3  # of the weights' bytes: activations, caches, torch itself


@dataclass(frozen=True, slots=True)
class Whole:
    """transformers' model of a target, and its head."""

    model: Any
    head: Head

    def states(self, token_ids: Tensor) -> Tensor:
        """Float32 [windows, n, hidden] of int64 [windows, n]."""
        import torch

        with torch.inference_mode():
            return torch.cat([self.model(input_ids=ids[None], use_cache=False).last_hidden_state for ids in token_ids])

    def continued(
        self,
        token_ids: Tensor,
        count: int,
        draw: Callable[[Tensor], Tensor],
        on_progress: OnProgress | None = None,
    ) -> Tensor:
        """The windows int64 [windows, n] with `count` tokens more. draw: of logits [windows, vocabulary], [windows].

        Batch by batch where the prompts are long: what is drawn depends on the windows, not on the machine.
        """
        import torch

        config, n = self.model.config, token_ids.shape[1]
        each = 4 * n * n * 2 * (config.num_attention_heads + config.index_n_heads)
        batches = torch.split(token_ids, max(_BATCH_BYTES // each, 1))
        return torch.cat([self._continued(batch, count, draw, on_progress) for batch in batches])

    def _continued(
        self, token_ids: Tensor, count: int, draw: Callable[[Tensor], Tensor], on_progress: OnProgress | None
    ) -> Tensor:
        import torch
        from transformers.cache_utils import DynamicCache

        cache, ids, new = DynamicCache(config=self.model.config), token_ids, token_ids
        with torch.inference_mode():
            for number in range(count):
                given = self.model(input_ids=new, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
                new = draw(self.head.logits([given])[0])[:, None]
                ids = torch.cat((ids, new), 1)
                if on_progress:
                    on_progress(Progress("continue", number + 1, count, "items"))
        return ids


def likeliest(logits: Tensor) -> Tensor:
    """The largest, the first of equal ones."""
    return logits.argmax(-1)


def drawn(temperature: float, seed: int) -> Callable[[Tensor], Tensor]:
    """Tokens by chance, the same for the same seed, torch and machine."""
    import torch

    made = torch.Generator().manual_seed(seed)

    def draw(logits: Tensor) -> Tensor:
        return torch.multinomial((logits / temperature).softmax(-1), 1, generator=made)[:, 0]

    return draw


def whole(target: Target, head: Head) -> Whole:
    """A target in memory. MtpforgeError where it does not fit."""
    import torch
    from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm

    with torch.device("meta"):
        model = glm.GlmMoeDsaModel(target.config)
    _refuse_large(target, 4 * sum(each.numel() for each in model.parameters()))
    model = model.to_empty(device="cpu").float().eval().requires_grad_(requires_grad=False)
    model.rotary_emb = glm.GlmMoeDsaRotaryEmbedding(target.config)  # computed, not stored
    fill(model, target.checkpoint, "model.", kernels=target.kernels())
    for layer in model.layers:
        as_served(layer.self_attn, target.config.rms_norm_eps)
    return Whole(model, head)


def _refuse_large(target: Target, n_bytes: int) -> None:
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if n_bytes * _ROOM > held:
        raise MtpforgeError(
            f"the target takes {memory_size(n_bytes * _ROOM)} of memory, this machine has {memory_size(held)}",
            where=shown(target.checkpoint.label),
            why="all of its layers are held in float32: it goes on with a text token by token",
            fix="`mtpforge fidelity DRAFT --reference SOURCE --inputs FILE` needs one layer at a time",
            code=errors.MACHINE,
        )
