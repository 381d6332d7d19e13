"""The tiny model as llama.cpp's converter stores it, written by the gguf package; and what its weights are then.

    from gguf_files import Converted, convert

The converter's own steps, written out: experts are stacked, kv_b is cut by heads and its first part turned, before
anything is quantized; norms and the router are F32 (llama.cpp conversion/deepseek.py, conversion/glm.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Type
from safetensors.torch import load_file

ARCHITECTURE = "glm-dsa"
# where the converter writes F32 whatever is asked for
_FULL = re.compile(r".*(norm|exp_probs_b|ffn_gate_inp|indexer\.proj)\..*")


@dataclass(frozen=True)
class Converted:
    """first: the file, or the first part. values: float32 of every tensor of the MTP layer, by the family's names."""

    first: Path
    values: dict[str, torch.Tensor]


def convert(
    model: Path, to: Path, kinds: dict[str, Type], *, parts: int = 1, split_kv: bool = True, no_mtp: bool = False,
    keys: dict[str, object] | None = None, halves: bool = False, encode=gguf.quants.quantize,
) -> Converted:  # fmt: skip
    """Write `to` (ends in .gguf) from a folder of the tiny model in BF16.

    kinds: what a name of GGUF holds -> the type of its weights; the first that fits, "" for all others. keys: of the
    file, in place of its own; None leaves one out. halves: gate and up of all experts in one tensor.
    encode(numbers, type): the bytes of a tensor.
    """
    config = json.loads((model / "config.json").read_text())
    held: dict[str, torch.Tensor] = {}
    for file in sorted(model.glob("*.safetensors")):
        held |= load_file(file)
    layer = config["num_hidden_layers"]
    n_blocks = layer if no_mtp else layer + 1
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GLM_DSA, n_blocks)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _stacked(held, config["n_routed_experts"], n_blocks, halves=halves).items():
        theirs = name.replace("e_score_correction_bias", "e_score_correction.bias")
        if split_kv and name.endswith("kv_b_proj.weight"):
            tensors |= _split(name, tensor, config, names)
        elif theirs.endswith(".gate_up_proj.weight"):
            tensors[f"blk.{theirs.split('.')[2]}.ffn_gate_up_exps.weight"] = tensor
        else:
            found = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
            assert found is not None, f"gguf has no name for {name}"
            tensors[found] = tensor
    most = -(-len(tensors) // parts) if parts > 1 else 0
    writer = gguf.GGUFWriter(to, ARCHITECTURE, split_max_tensors=most)
    _write_keys(writer, config, layer, n_blocks, keys or {})
    decoded = {}
    for name, tensor in tensors.items():
        kind = Type.F32 if _FULL.fullmatch(name) else next(t for part, t in kinds.items() if part in name)
        raw = encode(tensor.float().numpy(), kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        decoded[name] = torch.from_numpy(np.array(gguf.quants.dequantize(raw, kind)).reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = to if parts == 1 else to.with_name(f"{to.stem}-00001-of-{parts:05d}.gguf")
    assert first.exists()
    return Converted(first, {} if no_mtp else _layer(decoded, config, layer))


def _stacked(held, n_experts, n_blocks, *, halves):
    """Every expert's matrix behind the other's: [experts, out, in], under the name that the converter gives it."""
    found = {}
    for name, tensor in held.items():
        match = re.fullmatch(r"(model\.layers\.(\d+)\.).*", name)
        if match and int(match[2]) >= n_blocks:
            continue
        expert = re.fullmatch(r"(.*\.experts\.)(\d+)\.(\w+)\.weight", name)
        if not expert:
            found[name] = tensor
            continue
        stack = [held[f"{expert[1]}{n}.{expert[3]}.weight"] for n in range(n_experts)]
        found[f"{expert[1]}{expert[3]}.weight"] = torch.stack(stack)
    for name in [n for n in found if halves and n.endswith("experts.gate_proj.weight") and n.count("shared") == 0]:
        up = found.pop(name.replace("gate_proj", "up_proj"))
        found[name.replace("gate_proj", "gate_up_proj")] = torch.cat([found.pop(name), up], dim=1)
    return found


def _split(name, tensor, config, names):
    nope, v = config["qk_nope_head_dim"], config["v_head_dim"]
    heads = tensor.view(config["num_attention_heads"], nope + v, -1)
    k_b, v_b = heads.split([nope, v], dim=1)
    both = {"k_b_proj": k_b.transpose(1, 2).contiguous(), "v_b_proj": v_b.contiguous()}
    return {names.get_name(name.replace("kv_b_proj", n), try_suffixes=(".weight",)): t for n, t in both.items()}


def joined(k_b: torch.Tensor, v_b: torch.Tensor) -> torch.Tensor:
    """The matrix that was cut in two, head by head."""
    rows = []
    for head in range(len(k_b)):
        rows += [k_b[head, :, key] for key in range(k_b.shape[2])]
        rows += [v_b[head, value, :] for value in range(v_b.shape[1])]
    return torch.stack(rows)


def _layer(decoded, config, layer):
    """The MTP layer's values by the family's names, out of what was stored."""
    block, ours = f"blk.{layer}.", {}
    n_experts, prefix = config["n_routed_experts"], f"model.layers.{layer}."
    for name, value in decoded.items():
        if not name.startswith(block):
            continue
        local, _, end = name.removeprefix(block).rpartition(".")
        if local.endswith("_exps"):
            kinds = {"gate_up": ("gate", "up")}.get(local[4:-5], (local[4:-5],))
            for kind, half in zip(kinds, value.chunk(len(kinds), dim=1), strict=True):
                ours |= {f"{prefix}mlp.experts.{n}.{kind}_proj.weight": half[n] for n in range(n_experts)}
        elif local == "attn_k_b":
            ours[f"{prefix}self_attn.kv_b_proj.weight"] = joined(value, decoded[f"{block}attn_v_b.weight"])
        elif local != "attn_v_b":
            ours[prefix + LOCAL[f"{local}.{end}"]] = value
    return ours


def _write_keys(writer, config, layer, n_blocks, keys):
    def whole(name, number):
        name = f"{ARCHITECTURE}.{name}"
        if (value := keys.get(name, number)) is not None:
            writer.add_uint32(name, value)

    for key in ("general.name", "general.base_model.0.repo_url"):
        if key in keys:
            writer.add_string(key, keys[key])
    writer.add_array("tokenizer.ggml.tokens", [f"token {n}" for n in range(config["vocab_size"])])
    writer.add_array("tokenizer.ggml.token_type", [1] * config["vocab_size"])
    writer.add_string("tokenizer.chat_template", "{{ messages }}" * 1000)
    nope, rope, lora = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
    whole("block_count", n_blocks)
    if n_blocks > layer:
        whole("nextn_predict_layers", 1)
    whole("context_length", config["max_position_embeddings"])
    whole("embedding_length", config["hidden_size"])
    whole("feed_forward_length", config["intermediate_size"])
    whole("attention.head_count", config["num_attention_heads"])
    whole("attention.head_count_kv", 1)
    writer.add_float32(f"{ARCHITECTURE}.rope.freq_base", config["rope_parameters"]["rope_theta"])
    writer.add_float32(f"{ARCHITECTURE}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32(f"{ARCHITECTURE}.expert_weights_scale", config["routed_scaling_factor"])
    writer.add_bool(f"{ARCHITECTURE}.expert_weights_norm", config["norm_topk_prob"])
    whole("attention.q_lora_rank", config["q_lora_rank"])
    whole("attention.kv_lora_rank", lora)
    whole("attention.key_length", lora + rope)
    whole("attention.value_length", lora)
    whole("attention.key_length_mla", nope + rope)
    whole("attention.value_length_mla", config["v_head_dim"])
    whole("rope.dimension_count", rope)
    whole("vocab_size", config["vocab_size"])
    whole("leading_dense_block_count", config["first_k_dense_replace"])
    whole("expert_count", config["n_routed_experts"])
    whole("expert_used_count", config["num_experts_per_tok"])
    whole("expert_shared_count", config["n_shared_experts"])
    whole("expert_feed_forward_length", config["moe_intermediate_size"])
    whole("expert_group_count", config["n_group"])
    whole("expert_group_used_count", config["topk_group"])
    whole("attention.indexer.head_count", config["index_n_heads"])
    whole("attention.indexer.key_length", config["index_head_dim"])
    whole("attention.indexer.top_k", config["index_topk"])


# What single tensors of the layer are called, by hand: formats.md of the project, llama.cpp's tensor names.
LOCAL = {
    "nextn.eh_proj.weight": "eh_proj.weight",
    "nextn.enorm.weight": "enorm.weight",
    "nextn.hnorm.weight": "hnorm.weight",
    "nextn.shared_head_norm.weight": "shared_head.norm.weight",
    "nextn.shared_head_head.weight": "shared_head.head.weight",
    "nextn.embed_tokens.weight": "embed_tokens.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_kv_b.weight": "self_attn.kv_b_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "indexer.attn_k.weight": "self_attn.indexer.wk.weight",
    "indexer.attn_q_b.weight": "self_attn.indexer.wq_b.weight",
    "indexer.proj.weight": "self_attn.indexer.weights_proj.weight",
    "indexer.k_norm.weight": "self_attn.indexer.k_norm.weight",
    "indexer.k_norm.bias": "self_attn.indexer.k_norm.bias",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_shexp.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_experts.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_experts.down_proj.weight",
}
