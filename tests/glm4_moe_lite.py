"""A small checkpoint of GLM-4.7-Flash by transformers' and torch's own classes: names, and relations of sizes."""

from __future__ import annotations

from pathlib import Path

import torch
from stored_layer import store

N_EXPERTS = 8
LAYER = 2
P = f"model.layers.{LAYER}."
# As published: heads times their size is not the hidden size, and the rows of kv_a are no whole blocks (576 of them
# there, 192 here). A head's parts have their published sizes: vLLM has prefill kernels for few triples of these.
SIZES = {
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": LAYER + 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "moe_intermediate_size": 128,
    "n_routed_experts": N_EXPERTS,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "max_position_embeddings": 4096,
}
PUBLISHED = {
    "num_hidden_layers": LAYER,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "topk_method": "noaux_tc",
    "dtype": "bfloat16",
    "partial_rotary_factor": 1.0,
    "rope_scaling": None,
    "rope_theta": 1000000,
}


def write(folder: Path, **changed: object) -> Path:
    """Three layers in BF16, the last of which becomes the MTP layer, with the copies that the release has in it."""
    from transformers import Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM

    torch.manual_seed(0)
    return store(Glm4MoeLiteForCausalLM(Glm4MoeLiteConfig(**{**SIZES, **changed})), folder, PUBLISHED)
