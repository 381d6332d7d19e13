"""A layer of two experts and 1.2 million weights, and folders that hold it in any format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

P = "model.layers.3."
EXPERTS = 2
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "q_lora_rank": 256,
    "kv_lora_rank": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "qk_head_dim": 64,
    "head_dim": 64,
    "v_head_dim": 128,
    "index_n_heads": 2,
    "index_head_dim": 128,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 1,
}
# Weights [out, in] that a quantized layer has quantized; Linear layers that engines keep dense; vectors.
LINEARS = {
    "self_attn.q_a_proj": (256, 256),
    "self_attn.q_b_proj": (128, 256),
    "self_attn.kv_a_proj_with_mqa": (288, 256),
    "self_attn.kv_b_proj": (320, 256),
    "self_attn.o_proj": (256, 256),
    "self_attn.indexer.wq_b": (256, 256),
    **{f"mlp.shared_experts.{name}_proj": (256, 256) for name in ("gate", "up", "down")},
    **{f"mlp.experts.{n}.{name}_proj": (256, 256) for n in range(EXPERTS) for name in ("gate", "up", "down")},
}
DENSE = {
    "eh_proj": (256, 512),
    "mlp.gate": (EXPERTS, 256),
    "self_attn.indexer.wk": (128, 256),
    "self_attn.indexer.weights_proj": (2, 256),
}
VECTORS = {
    "enorm.weight": 256,
    "hnorm.weight": 256,
    "shared_head.norm.weight": 256,
    "input_layernorm.weight": 256,
    "post_attention_layernorm.weight": 256,
    "self_attn.q_a_layernorm.weight": 256,
    "self_attn.kv_a_layernorm.weight": 256,
    "self_attn.indexer.k_norm.weight": 128,
    "self_attn.indexer.k_norm.bias": 128,
}


def weights():
    """name -> tensor in BF16, the router's bias in F32; some blocks of every matrix are large, some small."""
    generator = torch.Generator().manual_seed(11)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator)

    found = {P + name: 1 + numbers(size) / 8 for name, size in VECTORS.items()}
    for name, (rows, columns) in (LINEARS | DENSE).items():
        loud = 2.0 ** numbers(rows, columns // 32).round().repeat_interleave(32, 1)
        found[f"{P}{name}.weight"] = numbers(rows, columns) * loud / 32
    stored = {name: tensor.bfloat16() for name, tensor in found.items()}
    return stored | {f"{P}mlp.gate.e_score_correction_bias": numbers(EXPERTS)}


def config(tiny):
    """That of the tiny model, `tiny` its folder, in these sizes."""
    return json.loads((Path(tiny) / "config.json").read_text()) | SIZES


def folder(home, tensors, config):
    home.mkdir(exist_ok=True)
    held = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(held, home / "model.safetensors", metadata={"format": "pt"})
    (home / "config.json").write_text(json.dumps(config))
    return home
