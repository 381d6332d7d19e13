"""A small GLM-4.x checkpoint by transformers' and torch's own classes: names, and relations of sizes, as published."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

N_EXPERTS = 4
LAYER = 2
SIZES = {
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": LAYER + 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "moe_intermediate_size": 128,
    "n_routed_experts": N_EXPERTS,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "use_qk_norm": True,
    "attention_bias": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
}


def write(folder: Path, **changed: object) -> Path:
    """Three layers by transformers, the last of which becomes the MTP layer; what is around it by torch.

    As in GLM-4.5: heads times their size is not the hidden size, fewer key and value heads than query heads.
    """
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRMSNorm

    torch.manual_seed(0)
    config = Glm4MoeConfig(**{**SIZES, **changed})
    model = Glm4MoeForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    width = config.hidden_size
    around = {
        "eh_proj": torch.nn.Linear(2 * width, width, bias=False),
        "enorm": Glm4MoeRMSNorm(width),
        "hnorm": Glm4MoeRMSNorm(width),
        "shared_head.norm": Glm4MoeRMSNorm(width),
        "shared_head.head": torch.nn.Linear(width, config.vocab_size, bias=False),
        "embed_tokens": torch.nn.Embedding(config.vocab_size, width),
    }
    held = model.state_dict()
    bias = f"model.layers.{LAYER}.mlp.gate.e_score_correction_bias"
    stored = dict(load_file(folder / "model.safetensors")) | {
        f"model.layers.{LAYER}.{name}.{key}": value.detach().to(torch.bfloat16)
        for name, module in around.items()
        for key, value in module.state_dict().items()
    }
    stored[bias] = held[bias].float()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"num_hidden_layers": LAYER, "dtype": "bfloat16"}))
    return folder


def target(folder: Path, source: Path, block: dict[str, object] | None) -> Path:
    """The source's config with a quantization block: a target without its MTP layer."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config | ({"quantization_config": block} if block else {})))
    return folder


def int4(*ignored: str) -> dict[str, object]:
    """A compressed-tensors block: INT4 in groups of 32, symmetric, all linears but those ignored."""
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
    return _compressed("pack-quantized", weights, None, ignored)


def channels(kind: str, *ignored: str) -> dict[str, object]:
    """A compressed-tensors block: 8 bits, a scale a row, token activations; kind: `float` or `int`."""
    weights = {"num_bits": 8, "type": kind, "strategy": "channel", "symmetric": True, "dynamic": False}
    inputs = {"num_bits": 8, "type": kind, "strategy": "token", "symmetric": True, "dynamic": True}
    return _compressed(f"{kind}-quantized", weights, inputs, ignored)


def fp8_blocks() -> dict[str, object]:
    """DeepSeek's block: FP8 in blocks of 128 x 128."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
    }


def _compressed(
    form: str, weights: dict[str, object], inputs: dict[str, object] | None, ignored: tuple[str, ...]
) -> dict[str, object]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
        "ignore": ["lm_head", *ignored],
    }
