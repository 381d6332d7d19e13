"""How long a comparison takes and what memory, told before anything runs.

By a short measurement of this machine's multiplication: what else takes long is told by the bytes, or by the words of
the vocabulary, whose distributions are compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from mtpforge.judging import distances, swapping
from mtpforge.judging.pairs import Side
from mtpforge.nextn.heads import Head

if TYPE_CHECKING:
    from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig

_TORCH_BYTES: Final = 500 << 20  # torch and transformers themselves
_DECODED: Final = 300e6  # weights a second and thread, read and decoded by compiled kernels
_DISTRIBUTION: Final = (
    50e-9  # seconds a word and row: its exponential, and what is summed of it; benchmarks/fidelity.py
)
_START: Final = 2.0  # seconds of a sweep over a layer whatever its size


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds, within a factor of two; bytes at the peak."""

    seconds: float
    memory_bytes: int


def cost(
    reference: Side, drafts: list[Side], head: Head, n_rows: int, k: int, workers: int, *, beside_target: bool = False
) -> Cost:
    """Of k steps of all layers, and of swapping all modules. beside_target: whether its distributions are compared."""
    config = reference.block.config
    n_swapped = min(n_rows, swapping.ROWS) * (16 + swapping.WORST) * len(drafts)
    run = n_rows * k * (1 + len(drafts)) + n_swapped
    predicted = run + n_rows * k * beside_target
    weights = 3 * config.hidden_size * config.moe_intermediate_size * reference.block.n_experts
    sweeps = k * (1 + len(drafts)) + 4 * len(drafts)
    multiplied = 2 * (_active(config) * run + config.hidden_size * head.n_tokens * predicted) / _multiplications()
    shared = multiplied + weights * sweeps / _DECODED + _DISTRIBUTION * head.n_tokens * predicted
    return Cost(
        shared / workers + _START * sweeps / 4,
        _memory(config, head, n_rows, k, len(drafts), workers),
    )


def _active(config: GlmMoeDsaConfig) -> int:
    """Weights that a row is multiplied with, the head aside."""
    c = config
    attention = c.q_lora_rank * (c.hidden_size + c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim))
    attention += c.hidden_size * (c.kv_lora_rank + c.num_attention_heads * c.v_head_dim)
    attention += (
        4 * c.kv_lora_rank * c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)
    )  # again for each piece
    experts = 3 * c.hidden_size * c.moe_intermediate_size * (c.num_experts_per_tok + c.n_shared_experts)
    return int(2 * c.hidden_size**2 + attention + experts)


def _memory(config: GlmMoeDsaConfig, head: Head, n_rows: int, k: int, n_drafts: int, workers: int) -> int:
    """Torch, the states of all steps, what a step holds, its largest part, and logits."""
    c = config
    states = 4 * n_rows * c.hidden_size * (k * (1 + n_drafts) + 6)
    swapped = 4 * min(n_rows, swapping.ROWS) * c.hidden_size * 4 * 20
    attention = 4 * (_active(config) - 2 * c.hidden_size**2)
    expert = 4 * workers * 6 * c.hidden_size * c.moe_intermediate_size
    logits = 2 * distances.LOGIT_BYTES + 4 * head.n_tokens * 16 * 8 * workers
    return int(_TORCH_BYTES + states + max(attention, swapped + expert, logits))


def _multiplications() -> float:
    """Additions and multiplications a second of one thread, on this machine, just now."""
    ours, theirs = torch.ones(256, 2048), torch.ones(2048, 2048)
    best = 1.0
    for _ in range(3):
        begin = time.perf_counter()
        torch.mm(ours, theirs)
        best = min(best, time.perf_counter() - begin)
    return 2 * 256 * 2048 * 2048 / best
