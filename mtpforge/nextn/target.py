"""open_target(): a target that transformers' modules can compute, its tensors accounted for by name before one is read.

A tensor of a main layer that no parameter takes could change the result, and one that is missing would be invented:
both are errors, and come before the first hour of computing rather than after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mtpforge import errors, formats
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family, family_of
from mtpforge.families.counting import served_experts
from mtpforge.nextn import configuring
from mtpforge.nextn.filling import empty, fill
from mtpforge.nextn.layer import Block, expert_kernels

if TYPE_CHECKING:
    from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig

    from mtpforge.weights.kernels import RowKernels

# What decides the computation of a whole model, beside that of its layers with experts.
_NEEDED: Final = ("vocab_size", "intermediate_size", "num_hidden_layers", "n_group", "topk_group")
_OPTIONAL: Final = (
    *("first_k_dense_replace", "mlp_layer_types"),
    *("indexer_types", "index_topk_freq", "index_skip_topk_offset", "index_topk_pattern"),
)
_FIXED: Final[Mapping[str, object]] = {"moe_layer_freq": 1}
# Tensors of a layer that no result of float32 arithmetic depends on. An indexer is stored in layers that use the choice
# of an earlier one too.
_UNUSED: Final = ("*.rotary_emb.inv_freq", "*.k_scale", "*.v_scale", "self_attn.indexer.*")
_PROJECTIONS: Final = ("gate_proj", "up_proj", "down_proj")
_STACK: Final = re.compile(r"mlp\.experts\.[^\d.]")
_OF_LAYER: Final = re.compile(r"model\.layers\.(\d{1,6})\.(.+)")


@dataclass(frozen=True, slots=True)
class Target:
    """A target whose config transformers understands and whose main layers have every tensor. Nothing is read yet.

    config: transformers' own. n_experts: of a layer that has any, counted by tensor names.
    """

    checkpoint: Checkpoint
    family: Family
    config: GlmMoeDsaConfig
    n_experts: int
    kernels: Callable[[], RowKernels | None] = lambda: None

    @property
    def n_layers(self) -> int:
        """Main layers."""
        return int(self.config.num_hidden_layers)

    @property
    def entry(self) -> int:
        """The last main layer that chooses its keys by itself: from here on a layer needs nothing of earlier ones."""
        return max(number for number, kind in enumerate(self.config.indexer_types) if kind == "full")

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(self.checkpoint.location)

    def block(self, number: int) -> Block:
        """A main layer; its n_experts is 0 where it is dense."""
        n_experts = self.n_experts if self.config.mlp_layer_types[number] == "sparse" else 0
        return Block(self.checkpoint, self.family.prefix(number), self.config, n_experts, "cpu", self.kernels)

    def last_norm(self) -> Any:  # noqa: ANN401 -- transformers has no types
        """The norm after the last layer."""
        from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaRMSNorm

        norm = empty(lambda: GlmMoeDsaRMSNorm(self.config.hidden_size, self.config.rms_norm_eps))
        fill(norm, self.checkpoint, "model.norm.")
        return norm


def open_target(checkpoint: Checkpoint) -> Target:
    """A target that can be computed here.

    MtpforgeError where it is not on this machine, of a family that transformers has no modules for, its config lacks
    what they need or says what they do not do, or where a main layer lacks a tensor or has one that nothing takes.
    """
    with errors_of(checkpoint):
        family = _family(checkpoint)
        _refuse_old_transformers()
        n_experts = served_experts(family, checkpoint)
        config = _config(family, checkpoint, n_experts)
        _account(checkpoint, config, n_experts)
    return Target(checkpoint, family, config, n_experts, expert_kernels(config, n_experts))


def _family(checkpoint: Checkpoint) -> Family:
    configuring.refuse_unrunnable(checkpoint)
    if checkpoint.revision:
        raise MtpforgeError(
            f"`{shown(checkpoint.label)}` is on the hub, capture needs every weight on this machine",
            where="option `--target`",
            why="all layers are computed, and what is fetched for that is the whole checkpoint",
            fix=f"`hf download {shown(checkpoint.label.split('@')[0])} --local-dir DIR`, then `--target DIR`",
        )
    if not checkpoint.has_headers:
        raise MtpforgeError(
            "the target has no weights",
            where=shown(checkpoint.label),
            why="all layers are computed",
            fix="name the folder that holds its *.safetensors",
        )
    return family_of(checkpoint.config)


def _refuse_old_transformers() -> None:
    """Refuse a transformers without these modules, or from before they passed chosen keys from layer to layer."""
    try:
        from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaAttention

        is_known = "prev_topk_indices" in signature(GlmMoeDsaAttention.forward).parameters
    except ImportError:
        is_known = False
    if not is_known:
        raise MtpforgeError(
            f"transformers {version('transformers')} cannot compute GLM-5.2",
            where="this Python environment",
            why="its modules for glm_moe_dsa are absent, or older than GLM-5.2",
            fix="`pip install 'transformers>=5.20'`",
            code=errors.MACHINE,
        )


def _config(family: Family, checkpoint: Checkpoint, n_experts: int) -> GlmMoeDsaConfig:
    """Configuration of transformers; only known keys go in, since it would take any as an attribute."""
    from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm
    from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig

    known = configuring.deciding(checkpoint, family.text(checkpoint.config), n_experts, _NEEDED, _OPTIONAL, _FIXED)
    n_layers = known["num_hidden_layers"]
    with configuring.making(checkpoint, "the model"):
        config = GlmMoeDsaConfig(
            **known,
            num_key_value_heads=known["num_attention_heads"],
            n_routed_experts=n_experts,
            layer_types=["indexed_attention"] * n_layers,
            attn_implementation="sdpa",
        )
        glm.GlmMoeDsaRotaryEmbedding(config)
    _refuse_other_layers(checkpoint, config, known)
    return config


def _refuse_other_layers(checkpoint: Checkpoint, config: GlmMoeDsaConfig, known: Mapping[str, Any]) -> None:
    """The kinds of all layers, which two keys may state; `indexer_types` is cut to the main layers."""
    n_layers, n_dense = known["num_hidden_layers"], known.get("first_k_dense_replace")
    if n_dense is None and "mlp_layer_types" not in known:
        raise configuring.missing(checkpoint, "first_k_dense_replace")
    kinds = config.mlp_layer_types
    # transformers takes the list, vLLM (0.33.0, deepseek_v2.py) the number
    if n_dense is not None and kinds != ["dense" if number < n_dense else "sparse" for number in range(n_layers)]:
        why = f"`mlp_layer_types` says otherwise: {kinds.count('dense'):,} of {n_layers:,} layers are dense"
        raise configuring.refused(checkpoint, f"`first_k_dense_replace` is {n_dense:,}", why)
    kinds = config.indexer_types
    if len(kinds) < n_layers or any(kind not in ("full", "shared") for kind in kinds) or kinds[0] != "full":
        what = "`indexer_types` does not say of every layer where its keys come from"
        raise configuring.refused(checkpoint, what, "full or shared, each")
    config.indexer_types = kinds[:n_layers]


def _account(checkpoint: Checkpoint, config: GlmMoeDsaConfig, n_experts: int) -> None:
    """Every main layer has what its modules take, and nothing that they do not."""
    held: list[set[str]] = [set() for _ in range(config.num_hidden_layers)]
    for name in checkpoint.names:
        match = _OF_LAYER.fullmatch(name)
        if match and int(match[1]) < len(held):
            held[int(match[1])].add(match[2])
    wanted: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for number, local in enumerate(held):
        kinds = config.mlp_layer_types[number], config.indexer_types[number]
        if kinds not in wanted:
            with configuring.making(checkpoint, "the model"):
                wanted[kinds] = _wanted(config, number, n_experts)
        _refuse_stacks(f"model.layers.{number}.", local)
        _compare(f"model.layers.{number}.", local, *wanted[kinds])


def _refuse_stacks(prefix: str, held: set[str]) -> None:
    if stacks := sorted(name for name in held if _STACK.match(name)):
        raise MtpforgeError(
            f"the experts of `{prefix}mlp` are stored in one tensor for all of them",
            where=f"`{shown(prefix + stacks[0])}`",
            why="capture computes with one expert after the other, and reads each by its own name",
            fix="capture with a running engine, `--states DIR`: docs/calibration.md; or store each expert by itself",
        )


def _wanted(config: GlmMoeDsaConfig, number: int, n_experts: int) -> tuple[set[str], set[str]]:
    """Names of a layer's plain tensors, and of its matrices without their last part, by transformers' own module."""
    import torch
    from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaDecoderLayer

    with torch.device("meta"):
        state = GlmMoeDsaDecoderLayer(config, number).state_dict()
    matrices = {n.removesuffix(".weight") for n, t in state.items() if t.ndim == 2 and n.endswith(".weight")}  # noqa: PLR2004
    stacks = {name for name, tensor in state.items() if tensor.ndim == 3}  # noqa: PLR2004  # of all experts
    plain = {name for name in state.keys() - stacks if name.removesuffix(".weight") not in matrices}
    if stacks:
        matrices |= {f"mlp.experts.{n}.{part}" for n in range(n_experts) for part in _PROJECTIONS}
    return plain, matrices


def _compare(prefix: str, held: set[str], plain: set[str], matrices: set[str]) -> None:
    stems = {formats.split(name)[0] for name in held}
    if missing := sorted((plain - held) | (matrices - stems)):
        raise MtpforgeError(
            f"`{prefix}{missing[0]}` is missing{_more(missing)}",
            where=f"config.json and the tensors of {prefix.rstrip('.')}",
            why="the layer cannot be computed without it: it would stay at random values",
            fix="download the target again",
        )
    left = (name for name in held - plain if formats.split(name)[0] not in matrices)
    if unknown := sorted(name for name in left if not any(fnmatchcase(name, pattern) for pattern in _UNUSED)):
        raise MtpforgeError(
            f"`{shown(prefix + unknown[0])}` is taken by nothing{_more(unknown)}",
            where=f"the tensors of {prefix.rstrip('.')}",
            why="transformers' modules have no place for it, and the layer's result could depend on it",
            fix="capture with a running engine, `--states DIR`: docs/calibration.md",
        )


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1:,} more" if len(names) > 1 else ""
