"""A small GLM-5.3-Flash by transformers' and torch's own classes: names, and relations of sizes, as published."""

from __future__ import annotations

import json
from pathlib import Path

import glm4_moe
import torch
from safetensors.torch import load_file, save_file

N_EXPERTS = 4
LAYER = 2
WITHIN = "model.language_model."
TEXT = {
    "model_type": "glm5_next_text",
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": LAYER + 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": N_EXPERTS,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "layer_types": ["linear_attention", "deepseek_sparse_attention", "deepseek_sparse_attention"],
    "indexer_types": ["full", "full", "full"],
    "kv_lora_rank": 128,
    "q_lora_rank": 384,
    "qk_rope_head_dim": 0,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 4,
    "index_kpool": 4,
    "index_kpool_always_select_tail": True,
    "index_share_for_mtp_iteration": True,
    "indexer_rope_interleave": True,
    "linear_attn_config": {"num_heads": 2, "head_dim": 128, "short_conv_kernel_size": 4, "gate_lower_bound": -5.0},
    "mla_use_nope": True,
    "mhc": True,
    "hc_mult": 4,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "routed_scaling_factor": 2.5,
    "moe_router_dtype": "float32",
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
VISION = {"depth": 1, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 256}
# What the release stores in FP8 of its MTP layer, beside the experts (modules_to_not_convert lists the rest).
FP8 = ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.q_b_proj", "self_attn.o_proj",
       "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj")  # fmt: skip
DENSE = ("eh_proj", "mlp.gate", "self_attn.kv_b_proj", "self_attn.indexer.wq_b", "self_attn.indexer.wk",
         "self_attn.indexer.weights_proj")  # fmt: skip


def write(folder: Path, **changed: object) -> Path:
    """Three layers and something to see with by transformers; the last layer becomes the MTP layer.

    As published: no rows of the attention turn, the query's latent is wider than the key's, and the MTP layer has none
    of the streams (`hc_*`) of those before it.
    """
    from transformers import Glm5NextConfig, Glm5NextForConditionalGeneration

    torch.manual_seed(0)
    config = Glm5NextConfig(text_config={**TEXT, **changed}, vision_config=VISION)
    model = Glm5NextForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    prefix = f"{WITHIN}layers.{LAYER}."
    stored = {n: t for n, t in load_file(folder / "model.safetensors").items() if not n.startswith(f"{prefix}hc_")}
    stored |= {f"{prefix}{name}": value for name, value in _around(config.text_config.hidden_size).items()}
    bias = f"{prefix}mlp.gate.e_score_correction_bias"
    stored[bias] = torch.randn(stored[bias].shape)
    for part in ("ape", "gate"):  # transformers makes them constant
        name = f"{prefix}self_attn.indexer.index_kpool_compress_{part}"
        stored[name] = torch.randn(stored[name].shape).to(stored[name].dtype)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    for key in ("layer_types", "mlp_layer_types", "indexer_types"):
        written["text_config"][key] = TEXT[key][:LAYER]
    written["text_config"]["num_hidden_layers"] = LAYER
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def _around(width: int) -> dict[str, torch.Tensor]:
    """What an MTP layer has around its block."""
    norms = {f"{name}.weight": torch.randn(width) for name in ("enorm", "hnorm", "shared_head.norm")}
    held = {**norms, "eh_proj.weight": torch.nn.Linear(2 * width, width, bias=False).weight.detach()}
    return {name: value.to(torch.bfloat16) for name, value in held.items()}


def write_fp8(folder: Path, source: Path) -> Path:
    """The source as the release stores it: FP8 in blocks of 128 x 128 where FP8 and experts say so."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": fp8_blocks()}))
    stored = load_file(source / "model.safetensors")
    for name in [n for n in stored if n.startswith(f"{WITHIN}layers.{LAYER}.")]:
        module = name.removeprefix(f"{WITHIN}layers.{LAYER}.").removesuffix(".weight")
        if module in FP8 or module.startswith("mlp.experts."):
            stored[name], stored[f"{name}_scale_inv"] = _blocks(stored[name].float())
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return folder


def _blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 [out, in] and the scale of each block, F32 [out / 128, in / 128]: sizes are multiples of 128."""
    parts = weight.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))  # [out / 128, 128, in / 128, 128]
    scale = parts.abs().amax((1, 3)) / 448
    return (parts / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn), scale


def fp8_blocks(*ignored: str, within: str = WITHIN) -> dict[str, object]:
    """DeepSeek's block, which leaves out what the release leaves out, and what is named."""
    left_out = [f"{within}layers.{LAYER}.{name}" for name in (*DENSE, *ignored)]
    return glm4_moe.fp8_blocks() | {"modules_to_not_convert": ["lm_head", *left_out]}


def modelopt(*ignored: str) -> dict[str, object]:
    """ModelOpt's NVFP4 of the weights of all linears but those ignored."""
    weights = {"num_bits": 4, "type": "float", "dynamic": False, "group_size": 16}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4", "producer": {"name": "modelopt"},
            "config_groups": groups, "ignore": ["lm_head", "model.visual*", *ignored]}  # fmt: skip


def nvfp4(*ignored: str) -> dict[str, object]:
    """compressed-tensors' NVFP4 of the weights of all linears but those ignored."""
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True,
               "dynamic": False, "scale_dtype": "torch.float8_e4m3fn"}  # fmt: skip
    return {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
            "ignore": ["lm_head", "re:.*visual.*", *ignored]}  # fmt: skip


def quark(*ignored: str, dynamic: bool = False) -> dict[str, object]:
    """Quark's MXFP4 of the weights of all linears but those ignored, of activations too or of none."""
    mxfp4 = {"dtype": "fp4", "qscheme": "per_group", "ch_axis": -1, "group_size": 32, "scale_format": "e8m0"}
    inputs = {**mxfp4, "is_dynamic": True} if dynamic else None
    every = {"weight": {**mxfp4, "is_dynamic": False}, "input_tensors": inputs, "output_tensors": None, "bias": None}
    return {"quant_method": "quark", "export": {"kv_cache_group": [], "pack_method": "reorder"},
            "global_quant_config": every, "layer_quant_config": {}, "layer_type_quant_config": {},
            "exclude": ["lm_head", "re:.*visual.*", *ignored]}  # fmt: skip
