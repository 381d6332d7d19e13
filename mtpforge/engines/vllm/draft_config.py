"""The draft's config.json: every field that the engine reads from it explicit, and the same scheme stated by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines.fields import NOT_OF_A_DRAFT, Fields, refuse
from mtpforge.engines.vllm import quantization_block
from mtpforge.engines.vllm.draft_classes import DraftClass, draft_class
from mtpforge.families import Family
from mtpforge.scheme import Scheme

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
    left_out = NOT_OF_A_DRAFT.union(known.expert_count_twins, known.computed)
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
    config = _wrapped(config, target, family) if known.wrapper else config
    if block:
        config["quantization_config"] = block
    copied: dict[str, object] = json.loads(json.dumps(dict(sorted(config.items()))))
    return copied


def _wrapped(text: Mapping[str, object], target: Checkpoint, family: Family) -> dict[str, object]:
    """The language model's config in one of the type by which vLLM knows the draft; what it sees with is left out."""
    return {
        "architectures": _architectures(target.config, family),
        "model_type": draft_class(family).wrapper,
        "dtype": text["dtype"],
        "text_config": {key: value for key, value in sorted(text.items()) if key != "architectures"}
        | {"model_type": family.model_types[0]},
    }


def refuse_misstated(target: Checkpoint, source_config: Mapping[str, object], family: Family) -> None:
    """MtpforgeError for a key that the target's config.json lacks, where vLLM has no default or one that is wrong.

    And for one that holds something else than its kind. vLLM builds the draft from its own copy of the key and never
    compares the two: the target's says what is served.
    """
    known = draft_class(family)
    wanted = Fields(known.required, known.defaults, known.expert_count, known.counts_from_zero, known.rope)
    with errors_of(target):
        refuse("vLLM", family.text(target.config), family.text(source_config), wanted)


def _architectures(text: Mapping[str, object], family: Family) -> list[object]:
    """The language model's own; a multimodal wrapper's name says nothing about the layer."""
    named = text.get("architectures")
    return list(named) if isinstance(named, list) and named else [family.architecture]


def _decoded(known: DraftClass, source_config: Mapping[str, object]) -> frozenset[str]:
    """Modules that the source stores in a format that vLLM decodes while loading: they are not listed as dense then."""
    block = source_config.get("quantization_config")
    stored = isinstance(block, Mapping) and block.get("quant_method") == "fp8"
    return frozenset(known.decoded_on_load) if stored else frozenset()
