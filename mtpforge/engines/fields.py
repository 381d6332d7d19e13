"""Fields of a target's config.json that a draft repeats: what lacks, and what holds something else than its kind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from mtpforge.engines.rope import rope_seen
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.families.sizes import misstated, whole_number
from mtpforge.report import Trap

# Of the target as a whole, or of the run that saved it: a draft does not repeat them.
NOT_OF_A_DRAFT: Final = frozenset(
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


@dataclass(frozen=True, slots=True)
class Fields:
    """required: no default would do. defaults: what is taken for an absent one. rope: for `rope_seen`, or None."""

    required: Collection[str]
    defaults: Mapping[str, object]
    expert_counts: Collection[str]
    counts_from_zero: Collection[str]
    rope: Mapping[str, object] | None


def refuse(engine: str, text: Mapping[str, object], other: Mapping[str, object], wanted: Fields) -> None:
    """MtpforgeError for a field of `text` that an engine could only guess, or that is of another kind.

    other: the source's config, for what to add.
    """
    for name in wanted.required:
        if text.get(name) is None:
            raise _unstated(name, other.get(name), f"{engine} builds the MTP layer from it")
    _refuse_other_kinds(text, wanted)
    if wanted.rope is not None and rope_seen(text, wanted.rope)["rope_theta"] is None:
        raise _unstated("rope_parameters", other.get("rope_parameters"), f"{engine} would turn positions by a default")
    for field, default in wanted.defaults.items():
        stated = other.get(field)
        if text.get(field) is None and stated is not None and stated != default:
            taken = f"{engine} would take {json.dumps(default)}, the source's config says {shown(json.dumps(stated))}"
            raise _unstated(field, stated, taken)


def _refuse_other_kinds(text: Mapping[str, object], wanted: Fields) -> None:
    """Required fields and counts of experts are whole numbers, every other is what its default is."""
    zero = {key for key in wanted.counts_from_zero if type(text[key]) is int and text[key] == 0}
    stated = {key for key in wanted.expert_counts if text.get(key) is not None}
    for key in sorted({*wanted.required, *stated} - zero):
        whole_number(text, key)
    turning = {} if wanted.rope is None else {**wanted.rope, "rope_theta": 1.0}
    rope = rope_seen(text, wanted.rope)
    seen = {**text, **{key: rope[key] for key in turning}}
    for key, default in {**wanted.defaults, **turning}.items():
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


def wrong(engine: str, field: str, ours: object, theirs: object, *, silent: bool, remedy: str) -> Trap:
    """The trap of a draft whose config.json says otherwise than it must. remedy: how to make the draft anew."""
    said = f"`{field}` is {shown(json.dumps(ours, default=str))}" if ours is not None else f"`{field}` is missing"
    return Trap(
        f"config-{field}",
        "error",
        f"the draft's {said}, it must be {shown(json.dumps(theirs, default=str))}"
        + (f"; {engine} would not notice" if silent else ""),
        f"correct `{field}` in the draft's config.json, or {remedy}",
        where=f"draft's config.json, {field}",
        silent=silent,
    )
