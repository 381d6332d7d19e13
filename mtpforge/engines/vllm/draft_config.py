"""The draft's config.json: every field that the engine reads from it explicit, and the same scheme stated by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines.rope import rope_seen
from mtpforge.engines.vllm import quantization_block
from mtpforge.engines.vllm.draft_classes import DraftClass, draft_class
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.families import Family
from mtpforge.families.sizes import misstated, whole_number
from mtpforge.scheme import Scheme

# Of the target as a whole, or of the run that saved it: a draft does not repeat them.
_NOT_OF_A_DRAFT: Final = frozenset(
    (
        "quantization_config",
        "compression_config",
        "mtp_quantization_config",
        "quantization",
        "auto_map",
        "torch_dtype",
        "name_or_path",
        "_name_or_path",
        "text_config",
        "vision_config",
    )
)
_LENGTH: Final = "max_position_embeddings"  # vLLM raises a smaller one


def draft_config(
    target: Checkpoint, source_config: Mapping[str, object], family: Family, scheme: Scheme, n_experts: int
) -> dict[str, object]:
    """config.json of a draft: the target's fields, vLLM's default where the target has none.

    The expert count is stated once, `num_nextn_predict_layers` is 1, what the class wants fixed is fixed, what it
    computes whatever is said is left out. The block states `scheme` for the layer by name and is absent for a dense
    draft. A field that the target has to state and does not is an error.
    """
    refuse_misstated(target, source_config, family)
    text, other, known = family.text(target.config), family.text(source_config), draft_class(family)
    left_out = _NOT_OF_A_DRAFT.union(known.expert_count_twins, known.computed)
    config = {key: value for key, value in text.items() if key not in left_out}
    if config.get(_LENGTH) is None and other.get(_LENGTH) is not None:
        config[_LENGTH] = other[_LENGTH]
    for field, default in known.defaults.items():
        if config.get(field) is None and default != "":
            config[field] = default
    config |= {
        "architectures": _architectures(text, family),
        "model_type": text["model_type"],
        family.expert_keys[0]: n_experts,
        "num_nextn_predict_layers": 1,
        **{name: fixed.value for name, fixed in known.fixed.items()},
        "dtype": text.get("dtype") or text.get("torch_dtype") or "bfloat16",
    }
    block = quantization_block.block(
        config, family, scheme, parse(target.quantization), decoded=_decoded(known, source_config)
    )
    if block:
        config["quantization_config"] = block
    copied: dict[str, object] = json.loads(json.dumps(dict(sorted(config.items()))))
    return copied


def refuse_misstated(target: Checkpoint, source_config: Mapping[str, object], family: Family) -> None:
    """MtpforgeError for a key that the target's config.json lacks, where vLLM has no default or one that is wrong.

    And for one that holds something else than its kind. vLLM builds the draft from its own copy of the key and never
    compares the two: the target's says what is served.
    """
    text, other, known = family.text(target.config), family.text(source_config), draft_class(family)
    with errors_of(target):
        for field in known.required:
            if text.get(field) is None:
                raise _unstated(field, other.get(field), "vLLM builds the MTP layer from it")
        _refuse_other_kinds(text, known)
        if rope_seen(text, known.rope)["rope_theta"] is None:
            raise _unstated("rope_parameters", other.get("rope_parameters"), "vLLM would turn positions by a default")
        for field, default in known.defaults.items():
            stated = other.get(field)
            if text.get(field) is None and stated is not None and stated != default:
                taken = f"vLLM would take {json.dumps(default)}, the source's config says {shown(json.dumps(stated))}"
                raise _unstated(field, stated, taken)


def _refuse_other_kinds(text: Mapping[str, object], known: DraftClass) -> None:
    """Required fields and counts of experts are whole numbers, every other is what its default is."""
    zero = {key for key in known.counts_from_zero if type(text[key]) is int and text[key] == 0}
    stated = {key for key in known.expert_count if text.get(key) is not None}
    for key in sorted({*known.required, *stated} - zero):
        whole_number(text, key)
    turning = {**known.rope, "rope_theta": 1.0}
    rope = rope_seen(text, known.rope)
    seen = {**text, **{key: rope[key] for key in turning}}
    for key, default in {**known.defaults, **turning}.items():
        is_kind, kind = _KINDS[type(default)]
        if seen.get(key) is not None and not is_kind(seen[key]):
            raise misstated(key, seen[key], kind)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


# What a field may hold, by the type of its default.
_KINDS: Final[Mapping[type, tuple[Callable[[object], bool], str]]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    str: (lambda value: isinstance(value, str), "a string"),
    float: (_is_positive, "a positive number"),
    int: (lambda value: type(value) is int and value > 0, "a positive whole number"),
}


def _unstated(field: str, known: object, why: str) -> MtpforgeError:
    whole = f'`"{field}": {shown(json.dumps(known))}`' if known is not None else f"`{field}`"
    return MtpforgeError(
        f"the config has no `{field}`",
        where=Where("config.json", inside=f"`{field}`"),
        why=why,
        fix=f"add {whole} to config.json, as the {'source' if known is not None else 'published base model'} states it",
    )


def _architectures(text: Mapping[str, object], family: Family) -> list[object]:
    """The language model's own; a multimodal wrapper's name says nothing about the layer."""
    named = text.get("architectures")
    return list(named) if isinstance(named, list) and named else [family.architecture]


def _decoded(known: DraftClass, source_config: Mapping[str, object]) -> frozenset[str]:
    """Modules that the source stores in a format that vLLM decodes while loading: they are not listed as dense then."""
    block = source_config.get("quantization_config")
    stored = isinstance(block, Mapping) and block.get("quant_method") == "fp8"
    return frozenset(known.decoded_on_load) if stored else frozenset()
