"""A whole MTP layer of GLM-5.x, as small as its formats allow: two experts, 64 columns, 60 kB; in every stored form.

CONFIG          config.json of an unquantized checkpoint whose layer has number 1
BLOCKS          quantization blocks of targets, one a method and format
values()        the weights, float32, the same each time
tensors(form)   the layer's tensors in one stored form, by full name
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from whole_weights import encode

from mtpforge.tensors import Quantization

PREFIX = "model.layers.1."
HIDDEN, RANK, HEADS, HEAD, EXPERTS, INNER = 64, 32, 2, 16, 2, 32
CONFIG = {
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "dtype": "bfloat16",
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "index_head_dim": 32,
    "index_n_heads": 2,
    "index_topk": 16,
    "indexer_rope_interleave": True,
    "index_share_for_mtp_iteration": True,
    "kv_lora_rank": RANK,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": INNER,
    "moe_layer_freq": 1,
    "moe_router_dtype": "float32",
    "n_group": 1,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": HEADS,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 1,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": RANK,
    "qk_nope_head_dim": HEAD,
    "qk_rope_head_dim": HEAD,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 10000, "rope_type": "default"},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": HEAD,
    "vocab_size": 512,
}
MATRICES = {
    "eh_proj": (HIDDEN, 2 * HIDDEN),
    "self_attn.q_a_proj": (RANK, HIDDEN),
    "self_attn.kv_a_proj_with_mqa": (RANK + HEAD, HIDDEN),
    "self_attn.q_b_proj": (HEADS * 2 * HEAD, RANK),
    "self_attn.kv_b_proj": (HEADS * 2 * HEAD, RANK),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "self_attn.indexer.wq_b": (64, RANK),
    "self_attn.indexer.wk": (32, HIDDEN),
    "self_attn.indexer.weights_proj": (2, HIDDEN),
    "mlp.gate": (EXPERTS, HIDDEN),
    **{f"mlp.shared_experts.{p}_proj": (INNER, HIDDEN) for p in ("gate", "up")},
    "mlp.shared_experts.down_proj": (HIDDEN, INNER),
    **{f"mlp.experts.{n}.{p}_proj": (INNER, HIDDEN) for n in range(EXPERTS) for p in ("gate", "up")},
    **{f"mlp.experts.{n}.down_proj": (HIDDEN, INNER) for n in range(EXPERTS)},
}
DENSE = frozenset({"eh_proj", "mlp.gate", "self_attn.indexer.wk", "self_attn.indexer.weights_proj"})
NORMS = {
    **dict.fromkeys(("enorm", "hnorm", "input_layernorm", "post_attention_layernorm", "shared_head.norm"), HIDDEN),
    "self_attn.q_a_layernorm": RANK,
    "self_attn.kv_a_layernorm": RANK,
    "self_attn.indexer.k_norm": 32,
}
FORMS = {
    "bf16": None,
    "fp8_block": Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32"),
    "fp8_scaled": Quantization("fp8_scaled", 8, strategy="channel", scale_dtype="F32"),
    "nvfp4": Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3"),
    "modelopt_nvfp4": Quantization("modelopt_nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3"),
    "pack_quantized": Quantization(
        "pack_quantized", 4, strategy="group", group_size=32, symmetric=False, scale_dtype="BF16"
    ),
    "int_quantized": Quantization("int_quantized", 8, strategy="channel", scale_dtype="BF16"),
}
_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False, "dynamic": False}
_FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True,
        "dynamic": False}  # fmt: skip
_FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
_INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}


def _groups(form: str, weights: dict, inputs: dict | None = None) -> dict:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
            "config_groups": {"group_0": group}}  # fmt: skip


BLOCKS: dict[str, dict] = {
    "none": {},
    "int4": _groups("pack-quantized", _INT4),
    "int4-parts": {
        **_groups("pack-quantized", _INT4),
        "ignore": ["lm_head", "re:.*self_attn.*", "re:model[.]layers[.](?:0|1)[.]mlp[.]gate$"],
    },
    "nvfp4": _groups("nvfp4-pack-quantized", _FP4),
    "fp8-channel": _groups("float-quantized", _FP8, {**_FP8, "strategy": "token", "dynamic": True}),
    "int8": _groups("int-quantized", _INT8, {**_INT8, "strategy": "token", "dynamic": True}),
    "fp8-blocks": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [32, 32],
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate_proj"],
    },
    "modelopt": {
        "quant_method": "modelopt",
        "quant_algo": "W4A16_NVFP4",
        "group_size": 16,
        "ignore": ["lm_head", "model.layers.1.self_attn*"],
    },
    "modelopt-mixed": {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"model.layers.1.mlp.experts": {"quant_algo": "W4A16_NVFP4", "group_size": 16}},
        "exclude_modules": ["lm_head"],
    },
    "quark": {"quant_method": "quark", "exclude": ["re:model[.]layers[.]1[.].*"], "export": {"kv_cache_group": []}},
}


@functools.cache
def values() -> dict[str, torch.Tensor]:
    """Local name of a matrix -> float32 [out, in], each number one that BF16 holds."""
    seed = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=seed).bfloat16().float() for name, shape in MATRICES.items()}


@functools.cache
def tensors(form: str) -> dict[str, torch.Tensor]:
    """Full name -> tensor of the layer; matrices outside DENSE are stored in `form`."""
    found: dict[str, torch.Tensor] = {}
    for names in _sets():
        quantization = None if names[0] in DENSE else FORMS[form]
        if quantization is None:
            found |= {f"{PREFIX}{name}.weight": values()[name].bfloat16() for name in names}
            continue
        for name, parts in zip(names, encode([values()[n] for n in names], quantization), strict=True):
            found |= {f"{PREFIX}{name}.{suffix}": part.contiguous() for suffix, part in parts.items()}
    for number, (name, width) in enumerate(NORMS.items()):
        found[f"{PREFIX}{name}.weight"] = torch.linspace(0.5, 1.5 + number, width).bfloat16()
    found[f"{PREFIX}self_attn.indexer.k_norm.bias"] = torch.linspace(-1, 1, 32).bfloat16()
    found[f"{PREFIX}mlp.gate.e_score_correction_bias"] = torch.linspace(4, 5, EXPERTS)
    return found


def _sets() -> list[list[str]]:
    """Gate and up of one MLP share a global scale where a format has one."""
    gates = [name for name in MATRICES if name.endswith("gate_proj")]
    fused = [[name, name.replace("gate_proj", "up_proj")] for name in gates]
    fused.append(["self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"])
    taken = {name for names in fused for name in names}
    return [*fused, *([name] for name in MATRICES if name not in taken)]


def config(block: str = "none", **changes: object) -> dict:
    """A config of its own, to be changed freely."""
    quantized = {"quantization_config": BLOCKS[block]} if BLOCKS[block] else {}
    return json.loads(json.dumps({**CONFIG, **quantized, **changes}))


def folder(path: Path, form: str, *, block: str = "none", index: bool = False) -> Path:
    """A checkpoint that holds the layer; with an index where asked."""
    path.mkdir(parents=True)
    held = tensors(form)
    save_file(held, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config(block)))
    if index:
        weight_map = dict.fromkeys(held, "model.safetensors")
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path
