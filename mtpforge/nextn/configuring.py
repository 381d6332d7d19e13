"""of_one_layer(), deciding(): what of a config.json decides what transformers' modules compute.

Only that goes into transformers' own configuration: dtypes, stale twins of the expert count and unknown keys stay out,
and nothing that decides is left to a default, which would be another model's. Values are checked here, key by key:
transformers takes a top_k of 0 or -5 and computes something.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import place_in
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.families import Family, families, family_of
from mtpforge.families.routing import routing

if TYPE_CHECKING:
    from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig

_NEEDED: Final = (
    *("hidden_size", "moe_intermediate_size", "n_shared_experts", "num_experts_per_tok"),
    *("num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    *("index_topk", "index_head_dim", "index_n_heads"),
    *("hidden_act", "rms_norm_eps", "norm_topk_prob", "routed_scaling_factor"),
    "max_position_embeddings",
)
_OPTIONAL: Final = (
    *("n_group", "topk_group", "attention_bias"),
    *("rope_parameters", "rope_theta", "rope_scaling"),
)
_SHARES: Final = "index_share_for_mtp_iteration"  # later steps attend to what the first one chose
# What transformers' modules compute whatever the config says (models/glm_moe_dsa/modeling_glm_moe_dsa.py, 5.23.0).
_FIXED: Final[Mapping[str, object]] = {
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "rope_interleave": True,
    "indexer_rope_interleave": True,
}


@dataclass(frozen=True, slots=True)
class _Allowed:
    """Values of a key. kind: `int` for whole numbers, `float` for any, both from least to most; `bool`."""

    kind: type
    least: float = 0
    most: float = 0

    def __contains__(self, value: object) -> bool:
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        kinds = int if self.kind is int else (int, float)
        return isinstance(value, kinds) and self.least <= value <= self.most

    def __str__(self) -> str:
        if self.kind is bool:
            return "it is true or false"
        return f"it is a {'whole ' * (self.kind is int)}number from {self.least:,} to {self.most:,}"


_COUNT: Final = _Allowed(int, 1, 1 << 31)
_WIDTH: Final = _Allowed(int, 1, 1 << 18)  # GLM-5.2's are 64 to 12,288; products of three of them stay below 2**63
_SWITCH: Final = _Allowed(bool)
_ALLOWED: Final[Mapping[str, _Allowed]] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size", "n_shared_experts"), _WIDTH),
    **dict.fromkeys(("num_attention_heads", "q_lora_rank", "kv_lora_rank", "v_head_dim"), _WIDTH),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "index_head_dim", "index_n_heads"), _WIDTH),
    **dict.fromkeys(("num_experts_per_tok", "n_group", "topk_group", "vocab_size"), _COUNT),
    **dict.fromkeys(("index_topk", "index_topk_freq", "max_position_embeddings"), _COUNT),
    **dict.fromkeys(("first_k_dense_replace", "index_skip_topk_offset"), _Allowed(int, 0, 1 << 31)),
    "num_hidden_layers": _Allowed(int, 1, 1_000),  # lists of that length are made
    "rms_norm_eps": _Allowed(float, 1e-30, 1),  # without any, a row of zeros has no norm
    "routed_scaling_factor": _Allowed(float, 1e-6, 1e6),
    "rope_theta": _Allowed(float, 1, 1e15),
    **dict.fromkeys(("norm_topk_prob", "attention_bias"), _SWITCH),
}


def deciding(
    checkpoint: Checkpoint,
    text: Mapping[str, object],
    n_experts: int,
    needed: Iterable[str] = (),
    optional: Iterable[str] = (),
    fixed: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """The keys of a config (its text part) that decide: those of a layer with routed experts, and these more.

    n_experts: that its routing must serve, 0 where no tensor tells. fixed: what the modules compute whatever the config
    says. MtpforgeError where a needed key is absent, has a value that nothing can be computed with, or the config asks
    for what transformers does not compute.
    """
    known: dict[str, Any] = {
        key: text[key] for key in (*_NEEDED, *needed, *_OPTIONAL, *optional) if text.get(key) is not None
    }
    if absent := [key for key in (*_NEEDED, *needed) if key not in known]:
        raise missing(checkpoint, absent[0])
    for key, only in {**_FIXED, **(fixed or {})}.items():
        if text.get(key, only) != only:
            raise refused(checkpoint, f"`{key}` is {shown(text[key])}", f"transformers computes {only} only")
    for key, value in known.items():
        _refuse_value(checkpoint, key, value)
    known |= {key: float(known[key]) for key in ("rms_norm_eps", "routed_scaling_factor")}  # transformers takes no 1
    _refuse_rope(checkpoint, known)
    _refuse_contradiction(checkpoint, known)
    _refuse_routing(checkpoint, known, n_experts)
    return known


def refuse_unrunnable(checkpoint: Checkpoint) -> None:
    """MtpforgeError for a family whose layers are not laid out for transformers' modules."""
    family = family_of(checkpoint.config)
    if not family.is_runnable:
        known = ", ".join(known.name for known in families() if known.is_runnable)
        raise MtpforgeError(
            f"layers of {family.name} cannot be run here",
            where=place_in(checkpoint, "config.json"),
            why=f"inputs, scores and gptq need transformers' modules, which are laid out for {known} only",
            fix="build without: `--prune-by bias` chooses experts, `--scales mse` finds scales, neither runs a layer",
        )


def of_one_layer(family: Family, checkpoint: Checkpoint, n_experts: int) -> GlmMoeDsaConfig:
    """Transformers' configuration of a model whose only layer is the nextn layer, with an indexer of its own.

    MtpforgeError where config.json lacks what decides the computation, or asks for what transformers does not compute.
    """
    from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm
    from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig

    refuse_unrunnable(checkpoint)
    known = deciding(checkpoint, family.text(checkpoint.config), n_experts)
    with making(checkpoint, "the layer"):
        config = GlmMoeDsaConfig(
            **known,
            num_key_value_heads=known["num_attention_heads"],
            n_routed_experts=n_experts,
            num_hidden_layers=1,
            mlp_layer_types=["sparse"],
            indexer_types=["full"],
            layer_types=["indexed_attention"],
            attn_implementation="sdpa",
        )
        glm.GlmMoeDsaRotaryEmbedding(config)
    return config


@contextmanager
def making(checkpoint: Checkpoint, what: str) -> Iterator[None]:
    """Whatever transformers raises over a config inside, as an MtpforgeError; ours pass."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (
        *(StrictDataclassError, TypeError, ValueError, LookupError),
        *(AttributeError, ArithmeticError, AssertionError, RuntimeError, MemoryError),
    ) as error:
        why = shown(" ".join(str(error).split()) or type(error).__name__)  # theirs has several lines
        raise refused(checkpoint, f"transformers cannot make {what} from this config", why) from error


def refused(checkpoint: Checkpoint, what: str, why: str) -> MtpforgeError:
    """The error for a config that cannot be computed."""
    fix = "correct config.json, as the published base model states it"
    return MtpforgeError(what, where=place_in(checkpoint, "config.json"), why=why, fix=fix)


def missing(checkpoint: Checkpoint, key: str) -> MtpforgeError:
    """The error for a config without a key that decides."""
    return refused(checkpoint, f"config.json has no `{key}`", "a default would be another model's")


def _refuse_value(checkpoint: Checkpoint, key: str, value: object) -> None:
    if key in _ALLOWED and value not in _ALLOWED[key]:
        raise refused(checkpoint, f"`{key}` is {shown(repr(value))}", str(_ALLOWED[key]))
    if key == "hidden_act":
        from transformers.activations import ACT2FN

        if not isinstance(value, str) or value not in ACT2FN:
            raise refused(checkpoint, f"`{key}` is {shown(repr(value))}", f"it is one of {', '.join(sorted(ACT2FN))}")


def _refuse_rope(checkpoint: Checkpoint, known: Mapping[str, Any]) -> None:
    """A base of rotary positions, where transformers (5.23.0, modeling_rope_utils.py) looks for it."""
    rope = known.get("rope_scaling") or known.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise refused(checkpoint, f"`rope_parameters` is {shown(repr(rope))}", "it holds `rope_theta` and `rope_type`")
    theta = rope.get("rope_theta", known.get("rope_theta"))
    if theta is None:
        raise missing(checkpoint, "rope_theta" if rope or "rope_parameters" in known else "rope_parameters")
    _refuse_value(checkpoint, "rope_theta", theta)


def _refuse_contradiction(checkpoint: Checkpoint, known: Mapping[str, Any]) -> None:
    """Keys that are possible each, and not together."""
    rotated, n_group = known["qk_rope_head_dim"], known.get("n_group", 1)
    if rotated % 2 or rotated > (most := known["index_head_dim"]):
        why = "rotary positions turn pairs" if rotated % 2 else f"`index_head_dim` is {most:,}, and they are part of it"
        raise refused(checkpoint, f"`qk_rope_head_dim` is {rotated:,}", why)
    if (used := known.get("topk_group", 1)) > n_group:
        raise refused(checkpoint, f"`topk_group` is {used:,}", f"it is at most `n_group`, which is {n_group:,}")


def _refuse_routing(checkpoint: Checkpoint, known: Mapping[str, Any], n_experts: int) -> None:
    """Every token must find its experts among those that are stored."""
    if not n_experts:
        return
    try:
        routing(known).refuse_count(n_experts)
    except MtpforgeError as error:  # its advice is for whoever drops experts
        key = error.place.inside if isinstance(error.place, Where) else error.where
        raise refused(checkpoint, error.what, f"{key}: {error.why}") from error


def differing(reference: Checkpoint, other: Checkpoint) -> dict[str, tuple[object, object]]:
    """Keys that decide the computation of the layer and that both configs state differently: (other's, reference's)."""
    theirs, ours = (family_of(each.config).text(each.config) for each in (reference, other))
    theirs, ours = {**_FIXED, **theirs}, {**_FIXED, **ours}
    keys = (*_NEEDED, "n_group", "topk_group", *_FIXED, _SHARES)
    found = {
        key: (ours[key], theirs[key]) for key in keys if key in ours and key in theirs and ours[key] != theirs[key]
    }
    bases = _rope_base(ours), _rope_base(theirs)
    return found if bases[0] == bases[1] else found | {"rope_theta": bases}


def computes(checkpoint: Checkpoint) -> bool:
    """Whether transformers' modules do what the config says of scores and positions."""
    text = family_of(checkpoint.config).text(checkpoint.config)
    return all(text.get(key, only) == only for key, only in _FIXED.items())


def _rope_base(text: Mapping[str, object]) -> object:
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    return rope.get("rope_theta", text.get("rope_theta")) if isinstance(rope, dict) else None
