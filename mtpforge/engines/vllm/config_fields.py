"""The config fields that vLLM reads from the draft's own config.json, and what it takes for an absent one.

Source: vllm models/deepseek_v32/nvidia/mtp.py, config/speculative.py (0.33.0); transformers GlmMoeDsaConfig (5.20).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Absent, with no default of the engine's: it would stop, or fail on the shapes.
REQUIRED: Final = (
    "hidden_size",
    "moe_intermediate_size",
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "n_shared_experts",
    "index_topk",
    "index_n_heads",
    "index_head_dim",
    "first_k_dense_replace",
    "vocab_size",
    "num_hidden_layers",
)

# What the engine, or the config class under it, takes where the field is absent. Nothing would fail.
DEFAULTS: Final[dict[str, object]] = {
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "scoring_func": "softmax",
    "topk_method": "",
    "indexer_rope_interleave": False,
    "index_share_for_mtp_iteration": False,
}

ROPE: Final = ("rope_parameters", "rope_theta", "rope_scaling")

# Twins of the expert count. The config class lets `num_experts` overwrite `n_routed_experts`: a draft carries neither.
COUNT_TWINS: Final = ("num_experts", "num_local_experts")

COMPARED: Final = (*REQUIRED, *DEFAULTS)


def experts_seen(config: Mapping[str, object]) -> object:
    """The expert count that the engine sees: `num_experts` overwrites `n_routed_experts`."""
    return next((config[key] for key in ("num_experts", "n_routed_experts") if config.get(key) is not None), None)


def seen(config: Mapping[str, object], field: str) -> object:
    """What the engine takes for a field, None where it takes nothing."""
    value = config.get(field)
    return DEFAULTS.get(field) if value is None else value


def rope_seen(config: Mapping[str, object]) -> dict[str, object]:
    """The rope that the engine uses, whichever keys state it."""
    stated = config.get("rope_parameters") or config.get("rope_scaling")
    rope = dict(stated) if isinstance(stated, Mapping) else {}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    kind = rope.get("rope_type", rope.get("type", "default"))
    rest = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type", "type")}
    return {"rope_theta": theta, "rope_type": kind, **rest}
