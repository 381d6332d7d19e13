"""What SGLang knows of one class of MTP drafts: one file of `classes/` each, found by the model_type of the family.

model_types         the families that SGLang runs with this class
expert_count_twins  config keys that would win over the expert count; a draft carries none
head_counts         config keys of what is dealt out over ranks
wrapper             model_type around the language model's config, "" for a config that is of nothing else
renamed             how a block's entries may begin that SGLang takes for this layer's, `{n}` the layer
whole_layer         an entry of the ignore list that leaves all of it dense, "" where none does
asked_whole         matrices of [fused] that the lists are asked about by their own names, not by their parts'
[dense]             module -> why SGLang never asks whether it is quantized
[joined]            quant_method -> why q_a_proj and kv_a_proj_with_mqa must be stored as it says, whatever else is
[decoded_on_load]   module that is built dense -> formats that are decoded while loading
[fused]             matrix that SGLang runs -> last names of its parts on disk
[[loads]]           modules (fnmatch), formats that they load in, which of those without zero points alone (symmetric),
                    why not in others, and why not in some (whys); the first that fits counts
[split]             last part of a module's name -> the axis that is cut over ranks
[repeated]          of those, the modules of key and value heads -> their count: more ranks than heads repeat them
[fields]            of the draft's config.json: required, counts that may be 0, optional (none where they are absent),
                    rope (whether any row is turned by its position), and what SGLang takes for an absent one
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Final, Literal

from mtpforge.checkpoint.quantization import QuantConfig
from mtpforge.errors import MtpforgeError, Where
from mtpforge.families import Family
from mtpforge.formats import label
from mtpforge.tensors import Quantization

_FOLDER: Final = "classes"
_NOT_TRIED: Final = "tensor"  # one FP8 scale a tensor
_UNTRIED: Final = "its loader was not tried with that"
# Format -> why no class loads it. Sources: layers/quantization/{mxfp4.py,compressed_tensors,quark} (0.5.23).
NEVER: Final = {
    "mxfp4": "it looks for MXFP4 experts as `weight`, as gpt-oss stores them, and passes over `weight_packed` without a"
    " word; for linears it has no scheme (`No compressed-tensors compatible scheme was found`)",
    "quark_mxfp4": "on NVIDIA's GPUs it has no kernel for Quark's MXFP4 (`currently requires the AITER runner`), and no"
    " scheme for its weights alone (`Unsupported FusedMoe scheme`)",
}


@dataclass(frozen=True, slots=True)
class Loads:
    """A `[[loads]]` table. symmetric: formats of which zero points are refused. whys: format -> why, where another."""

    modules: tuple[str, ...]
    formats: frozenset[str]
    why: str
    symmetric: frozenset[str] = frozenset()
    whys: Mapping[str, str] = field(default_factory=dict)

    def takes(self, quantization: Quantization) -> bool:
        """Whether a module of these loads so."""
        tried = quantization.format in self.formats and quantization.strategy != _NOT_TRIED
        return tried and not self._has_zero_points(quantization)

    def refusal(self, quantization: Quantization) -> str:
        """Why a module of these does not load so, "" where it does."""
        if self.takes(quantization):
            return ""
        is_said = not self.symmetric or self._has_zero_points(quantization)
        return self.whys.get(quantization.format) or (self.why if is_said else _UNTRIED)

    def _has_zero_points(self, quantization: Quantization) -> bool:
        return quantization.format in self.symmetric and not quantization.symmetric


@dataclass(frozen=True, slots=True)
class DraftClass:
    """One file of `classes/`; the module's docstring says what each field holds."""

    model_types: tuple[str, ...]
    expert_count_twins: tuple[str, ...]
    head_counts: tuple[str, ...]
    wrapper: str
    renamed: tuple[str, ...]
    whole_layer: str
    asked_whole: tuple[str, ...]
    dense: Mapping[str, str]
    joined: Mapping[str, str]
    decoded_on_load: Mapping[str, frozenset[str]]
    fused: Mapping[str, list[str]]
    loads: tuple[Loads, ...]
    split: Mapping[str, Literal["out", "in"]]
    repeated: Mapping[str, str]
    required: tuple[str, ...]
    counts_from_zero: tuple[str, ...]
    optional: tuple[str, ...]
    turns: bool
    defaults: Mapping[str, object]

    def named(self, block: QuantConfig, layer: int, prefix: str) -> QuantConfig:
        """The block with every entry for this layer as one for `prefix`; without a method where it leaves all dense."""
        if self.whole_layer and self.whole_layer.format(n=layer) in _listed(block):
            return QuantConfig(raw=block.raw)
        begins = sorted((begin.format(n=layer) for begin in self.renamed), key=len, reverse=True)

        def renamed(entries: Iterable[str]) -> tuple[str, ...]:
            found = ((entry, next((begin for begin in begins if begin in entry), "")) for entry in entries)
            return tuple(e.replace(begin, prefix.rstrip("."), 1) if begin else e for e, begin in found)

        groups = tuple(replace(group, targets=renamed(group.targets)) for group in block.groups)
        return replace(block, ignore=renamed(block.ignore), groups=groups)

    def refusal(self, template: str, quantization: Quantization) -> str:
        """Why a module does not load so, "" where it does."""
        if quantization.format in NEVER:
            return NEVER[quantization.format]
        row = next(row for row in self.loads if any(fnmatchcase(template, pattern) for pattern in row.modules))
        return row.refusal(quantization)


def _listed(block: QuantConfig) -> Collection[str]:
    """The list `ignore`, whatever the method makes of it."""
    stated = block.raw.get("ignore")
    return [entry for entry in stated if isinstance(entry, str)] if isinstance(stated, list) else ()


def unloadable(template: str, quantization: Quantization, why: str) -> MtpforgeError:
    """A module is stored as no draft of SGLang may store it."""
    return MtpforgeError(
        f"SGLang cannot load `{template}` as {label(quantization)}",
        where=Where("config.json", inside="quantization_config"),
        why=why,
        fix="leave it out of the scheme: `--scheme FILE`, or `--scheme bf16`",
    )


@cache
def draft_classes() -> tuple[DraftClass, ...]:
    """Every class, by file name."""
    found = (file for file in (files(__package__) / _FOLDER).iterdir() if file.name.endswith(".toml"))
    return tuple(_read(file.read_text(encoding="utf-8")) for file in sorted(found, key=lambda f: f.name))


def draft_class(family: Family) -> DraftClass:
    """The class that SGLang runs a family's draft with; MtpforgeError where none is known."""
    found = _found(family)
    if found is None:
        raise MtpforgeError(
            f"nothing is known of SGLang's draft class for {family.name}",
            why="its rules are one file of mtpforge/engines/sglang/classes, and none names this model_type",
            fix="`mtpforge extract --source S -o DIR` writes the plain layer",
        )
    return found


def runs(family: Family) -> bool:
    """Whether the class that SGLang runs a family's draft with is known."""
    return _found(family) is not None


def _found(family: Family) -> DraftClass | None:
    return next((c for c in draft_classes() if not set(family.model_types).isdisjoint(c.model_types)), None)


def never_quantized(family: Family) -> Collection[str]:
    """Module templates that SGLang never asks about."""
    return draft_class(family).dense.keys()


def decoded_on_load(family: Family) -> Mapping[str, frozenset[str]]:
    """Module template -> formats that SGLang decodes by itself while loading."""
    return draft_class(family).decoded_on_load


def _read(text: str) -> DraftClass:
    table = tomllib.loads(text)
    loads = (
        {
            **row,
            "modules": tuple(row["modules"]),
            "formats": frozenset(row["formats"]),
            "symmetric": frozenset(row.get("symmetric", ())),
        }
        for row in table["loads"]
    )
    return DraftClass(
        model_types=tuple(table["model_types"]),
        expert_count_twins=tuple(table["expert_count_twins"]),
        head_counts=tuple(table["head_counts"]),
        wrapper=table.get("wrapper", ""),
        renamed=tuple(table.get("renamed", ())),
        whole_layer=table.get("whole_layer", ""),
        asked_whole=tuple(table.get("asked_whole", ())),
        dense=table["dense"],
        joined=table.get("joined", {}),
        decoded_on_load={module: frozenset(formats) for module, formats in table["decoded_on_load"].items()},
        fused=table["fused"],
        loads=tuple(Loads(**row) for row in loads),
        split=table["split"],
        repeated=table.get("repeated", {}),
        required=tuple(table["fields"]["required"]),
        counts_from_zero=tuple(table["fields"]["counts_from_zero"]),
        optional=tuple(table["fields"].get("optional", ())),
        turns=table["fields"].get("rope", True),
        defaults=table["fields"]["defaults"],
    )
