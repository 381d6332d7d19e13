"""of_one_layer(), deciding(): what of a config.json decides what transformers' modules compute.

Only that goes into transformers' own configuration: dtypes, stale twins of the expert count and unknown keys stay out,
and nothing that decides is left to a default, which would be another model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.whose import of
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family

if TYPE_CHECKING:
    from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig

_NEEDED: Final = (
    *("hidden_size", "moe_intermediate_size", "n_shared_experts", "num_experts_per_tok"),
    *("num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    *("index_topk", "index_head_dim", "index_n_heads"),
    *("hidden_act", "rms_norm_eps", "norm_topk_prob", "routed_scaling_factor"),
)
_OPTIONAL: Final = (
    *("n_group", "topk_group", "attention_bias", "max_position_embeddings"),
    *("rope_parameters", "rope_theta", "rope_scaling"),
)
# What transformers' modules compute whatever the config says (models/glm_moe_dsa/modeling_glm_moe_dsa.py, 5.23.0).
_FIXED: Final[Mapping[str, object]] = {
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "rope_interleave": True,
    "indexer_rope_interleave": True,
}


def deciding(
    checkpoint: Checkpoint,
    text: Mapping[str, object],
    needed: Iterable[str] = (),
    optional: Iterable[str] = (),
    fixed: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """The keys of a config (its text part) that decide: those of a layer with routed experts, and these more.

    fixed: what the modules compute whatever the config says. MtpforgeError where a needed key is absent, or the config
    asks for what transformers does not compute.
    """
    known: dict[str, Any] = {
        key: text[key] for key in (*_NEEDED, *needed, *_OPTIONAL, *optional) if text.get(key) is not None
    }
    missing = [key for key in (*_NEEDED, *needed) if key not in known]
    if not {"rope_parameters", "rope_theta"} & known.keys():
        missing.append("rope_parameters")
    if missing:
        raise refused(checkpoint, f"config.json has no `{missing[0]}`", "a default would be another model's")
    for key, only in {**_FIXED, **(fixed or {})}.items():
        if text.get(key, only) != only:
            raise refused(checkpoint, f"`{key}` is {shown(text[key])}", f"transformers computes {only} only")
    return known


def of_one_layer(family: Family, checkpoint: Checkpoint, n_experts: int) -> GlmMoeDsaConfig:
    """Transformers' configuration of a model whose only layer is the nextn layer, with an indexer of its own.

    MtpforgeError where config.json lacks what decides the computation, or asks for what transformers does not compute.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers.activations import ACT2FN
    from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig

    known = deciding(checkpoint, family.text(checkpoint.config))
    try:
        ACT2FN[known["hidden_act"]]  # else a KeyError once the modules are made
        return GlmMoeDsaConfig(
            **known,
            num_key_value_heads=known["num_attention_heads"],
            n_routed_experts=n_experts,
            num_hidden_layers=1,
            mlp_layer_types=["sparse"],
            indexer_types=["full"],
            layer_types=["indexed_attention"],
            attn_implementation="sdpa",
        )
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        raise refused(checkpoint, "transformers cannot make the layer from this config", shown(error)) from error


def refused(checkpoint: Checkpoint, what: str, why: str) -> MtpforgeError:
    """The error for a config that cannot be computed."""
    fix = "correct config.json, as the published base model states it"
    return MtpforgeError(what, where=of(checkpoint, "config.json"), why=why, fix=fix)
