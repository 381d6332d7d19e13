"""Small checkpoints of DeepSeek V3 and V3.2 by transformers' and torch's own classes: names, and relations of sizes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from safetensors.torch import load_file, save_file
from stored_layer import store

FAMILIES = ("deepseek_v3", "deepseek_v32")
N_EXPERTS = 16
N_GROUPS = 4
LAYER = 2
P = f"model.layers.{LAYER}."
# As published: heads times their size is not the hidden size, q and k are longer than v, and the rows of q_a and kv_a
# are no whole blocks (576 of them there, 192 here).
SIZES = {
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": LAYER + 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_intermediate_size": 128,
    "n_routed_experts": N_EXPERTS,
    "num_experts_per_tok": 4,
    "n_group": N_GROUPS,
    "topk_group": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 4096,
}
INDEXER = {"index_n_heads": 4, "index_head_dim": 128, "index_topk": 64}
# What the published config says beside what transformers' classes write, rope in the spelling of those days.
PUBLISHED = {
    "num_hidden_layers": LAYER,
    "num_nextn_predict_layers": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "torch_dtype": "bfloat16",
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
BLOCK = 128
# Never FP8 in the releases, beside all that is no matrix: what surrounds the layers, the router, the indexer's weights.
UNQUANTIZED = ("embed_tokens", "lm_head", "shared_head.head", "eh_proj", "mlp.gate.", "weights_proj")


def write(folder: Path, family: str, **changed: object) -> Path:
    """Three layers in BF16, the last of which becomes the MTP layer, with the copies that releases have in it."""
    kind = {"deepseek_v3": "DeepseekV3", "deepseek_v32": "DeepseekV32"}[family]
    sizes = SIZES | (INDEXER if family == "deepseek_v32" else {}) | changed
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes))
    return store(model, folder, PUBLISHED)


def fp8_block(family: str) -> dict[str, object]:
    """The quantization block of the releases."""
    block = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    }
    return block | ({"scale_fmt": "ue8m0"} if family == "deepseek_v32" else {})


def write_fp8(folder: Path, plain: Path, family: str) -> Path:
    """The same checkpoint as releases store it: E4M3 in blocks with F32 `weight_scale_inv`, by transformers' own op.

    V3.2's scales are powers of two. transformers quantizes whole blocks only, so ragged edges are filled up for it.
    """
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    form = SimpleNamespace(weight_block_size=(BLOCK, BLOCK), scale_fmt=fp8_block(family).get("scale_fmt"))
    quantize = Fp8Quantize(SimpleNamespace(quantization_config=form))
    folder.mkdir()
    stored = {}
    for name, value in load_file(plain / "model.safetensors").items():
        if value.dim() != 2 or any(part in name for part in UNQUANTIZED):
            stored[name] = value
            continue
        rows, columns = value.shape
        whole = torch.nn.functional.pad(value, (0, -columns % BLOCK, 0, -rows % BLOCK))
        made = quantize.convert({name: whole})
        stored[name] = made[name][:rows, :columns].contiguous()
        stored[f"{name}_scale_inv"] = made[f"{name}_scale_inv"].float()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": fp8_block(family)}))
    return folder
