"""What vLLM knows of one class of MTP drafts: one file of `classes/` each, found by the model_type of the family.

source              file of vLLM that counts the layers, with its version
model_types         the families that vLLM runs with this class
expert_count        config keys of the expert count, the one that wins first
expert_count_twins  keys that repeat it; a draft carries none
sized_by            whose config.json sizes the layer: `draft`; or `target`, whose expert count is then the draft's
wrapper             model_type of a draft's config around `text_config`, by which alone vLLM knows the draft; or ""
around              what vLLM puts before names of the main model where the target's config is nested; or ""
builds_head         whether the layer has a head of its own until the target's takes its place; true where not said
without_layer       what vLLM does, asked for MTP, where neither target nor draft has the layer
head_counts         config keys of what is dealt out over ranks: query heads, then key and value heads
attention           vLLM's class that keeps keys and values, in the layer and in the model before it
[dense]             module -> why vLLM never asks whether it is quantized
[decoded_on_load]   module that is built dense -> formats that are decoded while loading
[matrices]          last part of the name of a matrix that vLLM runs -> its class, which config groups may target
[packed]            fused matrix -> its parts on disk, in shard order: packed_modules_mapping
[split]             last part of a module's name -> the axis that is cut over ranks; others lie on every rank
[repeated]          of those, the modules of key and value heads -> their count: more ranks than heads repeat them
[cache]             of a token, per layer and rank: `values` and, for an indexer, `key` values (expressions of config
keys) with a scale of key_scale_bytes for every key_block; heads: config key of heads that are dealt out over ranks and
have so many values each, "" where values are no head's; widths of a value, and sizes of vectors of packed_values packed
values, by dtype of the KV cache; taken_as: dtype asked for -> what it becomes
[fields]            of the draft's config.json: required (whole numbers for which no default would do; of these
counts_from_zero may be 0), defaults (what the engine takes for an absent one; "" for nothing),
fixed (what it must be, whatever the target says: value; trap and why for a target that
carries the layer and says otherwise; attribute of vLLM's module in which the built model shows
it, "" for none), computed (what the class does whatever the config says: a draft leaves the
field out, and one that says otherwise is of another model), rope (keys of rope_parameters
that may stand beside it, and what is taken for an absent one; false where it turns none)
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Final, Literal, TypeAlias

from mtpforge.errors import MtpforgeError
from mtpforge.families import Family

Axis: TypeAlias = Literal["out", "in"]
_FOLDER: Final = "classes"


@dataclass(frozen=True, slots=True)
class Fixed:
    """A field that must have one value: id and words of the trap for a target that carries the layer without it.

    attribute: of vLLM's module, where the built model shows the value; "" for none.
    """

    value: object
    trap: str
    why: str
    attribute: str = ""


@dataclass(frozen=True, slots=True)
class CacheClass:
    """What a token takes in the KV cache: the table `cache`."""

    values: str
    widths: Mapping[str, int]
    taken_as: Mapping[str, str]
    heads: str = ""
    key: str = ""
    key_block: int = 1
    key_scale_bytes: int = 0
    packed_values: int = 0
    packed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DraftClass:
    """One file of `classes/`; the module's docstring says what each field holds."""

    source: str
    model_types: tuple[str, ...]
    expert_count: tuple[str, ...]
    expert_count_twins: tuple[str, ...]
    sized_by: Literal["draft", "target"]
    wrapper: str
    around: str
    builds_head: bool
    without_layer: str
    head_counts: tuple[str, ...]
    attention: str
    dense: Mapping[str, str]
    decoded_on_load: Mapping[str, frozenset[str]]
    matrices: Mapping[str, str]
    packed: Mapping[str, list[str]]
    split: Mapping[str, Axis]
    repeated: Mapping[str, str]
    required: tuple[str, ...]
    counts_from_zero: tuple[str, ...]
    defaults: Mapping[str, object]
    fixed: Mapping[str, Fixed]
    computed: Mapping[str, object]
    rope: Mapping[str, object] | None
    cache: CacheClass | None

    @property
    def compared(self) -> tuple[str, ...]:
        """Fields that vLLM reads from the draft's config and that must be the target's."""
        return (*self.required, *self.defaults)

    def seen(self, config: Mapping[str, object], field: str) -> object:
        """What vLLM takes for a field, None where it takes nothing."""
        value = config.get(field)
        return self.defaults.get(field) if value is None else value

    def experts_seen(self, config: Mapping[str, object]) -> object:
        """The expert count that vLLM sees, None where no key states it."""
        return next((config[key] for key in self.expert_count if config.get(key) is not None), None)


@cache
def draft_classes() -> tuple[DraftClass, ...]:
    """Every class, by file name."""
    found = (file for file in (files(__package__) / _FOLDER).iterdir() if file.name.endswith(".toml"))
    return tuple(_read(file.read_text(encoding="utf-8")) for file in sorted(found, key=lambda f: f.name))


def draft_class(family: Family) -> DraftClass:
    """The class that vLLM runs a family's draft with; MtpforgeError where it has none."""
    found = _found(family)
    if found is None:
        raise MtpforgeError(
            f"nothing is known of vLLM's draft class for {family.name}",
            why="its rules are one file of mtpforge/engines/vllm/classes, and none names this model_type",
            fix="`mtpforge extract --source S -o DIR` writes the layer in BF16",
        )
    return found


def runs(family: Family) -> bool:
    """Whether the class that vLLM runs a family's draft with is known."""
    return _found(family) is not None


def _found(family: Family) -> DraftClass | None:
    return next((c for c in draft_classes() if not set(family.model_types).isdisjoint(c.model_types)), None)


def fewer_experts(family: Family) -> str:
    """Why a draft may not hold fewer experts than its target; "" where it may."""
    if draft_class(family).sized_by == "draft":
        return ""
    return "vLLM sizes this layer by the target's config: it would stop at the router, whose rows are fewer"


def never_quantized(family: Family) -> Collection[str]:
    """Module templates that vLLM never asks about."""
    return draft_class(family).dense.keys()


def decoded_on_load(family: Family) -> Mapping[str, frozenset[str]]:
    """Module template -> formats that vLLM decodes by itself while loading."""
    return draft_class(family).decoded_on_load


def _read(text: str) -> DraftClass:
    table = tomllib.loads(text)
    fields = table["fields"]
    return DraftClass(
        source=table["source"],
        model_types=tuple(table["model_types"]),
        expert_count=tuple(table["expert_count"]),
        expert_count_twins=tuple(table["expert_count_twins"]),
        sized_by=table["sized_by"],
        wrapper=table.get("wrapper", ""),
        around=table.get("around", ""),
        builds_head=table.get("builds_head", True),
        without_layer=table["without_layer"],
        head_counts=tuple(table["head_counts"]),
        attention=table["attention"],
        dense=table["dense"],
        decoded_on_load={module: frozenset(formats) for module, formats in table.get("decoded_on_load", {}).items()},
        matrices=table["matrices"],
        packed=table["packed"],
        split=table["split"],
        repeated=table.get("repeated", {}),
        required=tuple(fields["required"]),
        counts_from_zero=tuple(fields.get("counts_from_zero", ())),
        defaults=fields["defaults"],
        fixed={name: Fixed(**row) for name, row in fields.get("fixed", {}).items()},
        computed=fields.get("computed", {}),
        rope=None if fields.get("rope") is False else fields.get("rope", {}),
        cache=CacheClass(**table["cache"]) if "cache" in table else None,
    )
