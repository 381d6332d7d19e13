"""The draft's config.json: every field that SGLang reads from it explicit, and the block that it builds by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.engines.fields import NOT_OF_A_DRAFT, Fields, refuse
from mtpforge.engines.sglang import quantization_block
from mtpforge.engines.sglang.draft_classes import draft_class
from mtpforge.families import Family
from mtpforge.scheme import Scheme

_LENGTH: Final = "max_position_embeddings"


def draft_config(
    target: Checkpoint, source_config: Mapping[str, object], family: Family, scheme: Scheme, n_experts: int
) -> dict[str, object]:
    """config.json of a draft: the target's fields, SGLang's default where the target has none.

    The expert count is stated once, `num_nextn_predict_layers` is 1, the class is named as the target's is (SGLang
    turns it into the draft's), `dtype` is BF16, and the block states `scheme`; a dense draft has none.
    """
    refuse_misstated(target, source_config, family)
    text, other, known = family.text(target.config), family.text(source_config), draft_class(family)
    left_out = NOT_OF_A_DRAFT.union(known.expert_count_twins, family.expert_keys)
    config = {key: value for key, value in text.items() if key not in left_out}
    if config.get(_LENGTH) is None and other.get(_LENGTH) is not None:
        config[_LENGTH] = other[_LENGTH]
    for field, default in known.defaults.items():
        if config.get(field) is None:
            config[field] = default
    config |= {
        "architectures": [family.architecture],
        "model_type": text["model_type"],
        family.expert_keys[0]: n_experts,
        "num_nextn_predict_layers": 1,
        "dtype": "bfloat16",
    }
    block = quantization_block.block(config, family, scheme)
    config = _wrapped(config, known.wrapper) if known.wrapper else config
    if block:
        config["quantization_config"] = block
    copied: dict[str, object] = json.loads(json.dumps(dict(sorted(config.items()))))
    return copied


def _wrapped(text: Mapping[str, object], model_type: str) -> dict[str, object]:
    """The language model's config in one of the type that its engine knows; what it sees with is left out."""
    around = {key: text[key] for key in ("architectures", "dtype")}
    held = {key: value for key, value in sorted(text.items()) if key != "architectures"}
    return {**around, "model_type": model_type, "text_config": held}


def refuse_misstated(target: Checkpoint, source_config: Mapping[str, object], family: Family) -> None:
    """MtpforgeError for a key that the target's config.json lacks, where SGLang has no default or one that is wrong.

    And for one that holds something else than its kind. SGLang builds the draft from its own copy of the key and never
    compares the two: the target's says what is served.
    """
    known = draft_class(family)
    wanted = Fields(
        known.required,
        known.defaults,
        (*family.expert_keys, *known.expert_count_twins),
        known.counts_from_zero,
        {} if known.turns else None,
    )
    with errors_of(target):
        refuse("SGLang", family.text(target.config), family.text(source_config), wanted)
