"""Fields of config.json that vLLM reads from the draft's and does not compare with the target's (vLLM 0.33.0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .verdict import Findings

# What shapes the MTP layer's arithmetic.
COMPARED = (
    "hidden_size",
    "moe_intermediate_size",
    "intermediate_size",
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "rms_norm_eps",
    "hidden_act",
    "n_shared_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "norm_topk_prob",
    "routed_scaling_factor",
    "scoring_func",
    "topk_method",
    "first_k_dense_replace",
    "moe_layer_freq",
    "index_topk",
    "index_head_dim",
    "index_n_heads",
    "indexer_rope_interleave",
    "rope_parameters",
    "vocab_size",
    "num_hidden_layers",
)


def compare(target: object, draft: object, findings: Findings, *, same_config: bool) -> None:
    """Note every difference between two PreTrainedConfigs as an error, or as a note where `same_config` is off."""
    doubts = findings.errors if same_config else findings.notes

    def pair(name: str, default: object = None) -> tuple[object, object]:
        return getattr(target, name, default), getattr(draft, name, default)

    for name in COMPARED:
        ours, theirs = pair(name)
        if ours != theirs:
            doubts.append(
                f"config {name}: draft has {_plain(theirs)!r}, target {_plain(ours)!r}; vLLM builds the layer with the "
                "draft's and does not compare"
            )
    ours, theirs = pair("max_position_embeddings")
    if ours != theirs:
        findings.notes.append(
            f"config max_position_embeddings: target {ours}, draft {theirs} (vLLM raises a smaller one)"
        )
    if not getattr(target, "num_nextn_predict_layers", None):
        doubts.append(
            "the TARGET's config has no num_nextn_predict_layers (vLLM counts MTP layers there, not in the draft's); "
            "serve with --hf-overrides '{\"num_nextn_predict_layers\": 1}', and give it here too"
        )
    ours, theirs = pair("n_routed_experts")
    if ours != theirs:
        findings.notes.append(f"config n_routed_experts: draft {theirs}, target {ours}")
    ours, theirs = pair("index_share_for_mtp_iteration", default=False)
    if ours != theirs:
        doubts.append(f"config index_share_for_mtp_iteration: draft {theirs!r}, target {ours!r}; the draft's is used")


def check_router(model: torch.nn.Module, model_type: str, doubts: list[str]) -> None:
    """A router that does not run in float32 although GLM-5.2's does (vllm/model_executor/models/deepseek_v2.py)."""
    for name, module in model.named_modules():
        dtype = getattr(module, "router_dtype", "absent")
        if dtype != "absent" and model_type == "glm_moe_dsa" and str(dtype) != "torch.float32":
            doubts.append(
                f"{name}: router runs in {dtype or 'the model dtype'}, the target's in float32: the draft's "
                'config.json lacks "moe_router_dtype": "float32"'
            )


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | str | bool | None | list | dict) else str(value)
