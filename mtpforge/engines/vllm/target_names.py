"""A target's quantization block in the names that vLLM asks about, where it keeps the language model in a wrapper.

The wrapper's class renames what a block names, from the names on disk to those of its modules, before it is asked:
`model.language_model.layers.3.` becomes `language_model.model.layers.3.`. The MTP layer is asked about outside of the
wrapper, as `model.layers.45.`, and is not found under the new name.

Source: vllm model_executor/model_loader/utils.py, configure_quant_config; models/utils.py, WeightsMapper;
apply_vllm_mapper of each quantization config (0.33.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mtpforge.checkpoint.quantization import parse
from mtpforge.checkpoint.tensor_names import WITHIN
from mtpforge.engines.vllm.draft_classes import draft_class
from mtpforge.families import Family

_HEAD: Final = "lm_head."
_EXCLUSIONS: Final = ("ignore", "exclude", "exclude_modules", "modules_to_not_convert", "ignored_layers")
_LISTS: Final = (*_EXCLUSIONS, "targets", "modules_in_block_to_quantize", "block_name_to_quantize")
_BY_NAME: Final = ("quantized_layers", "layer_quant_config", "extra_config")
_STARS: Final = ("modelopt",)  # whose `x*` vLLM splits into `x` and `x.*` as it renames


def around(family: Family, config: Mapping[str, object]) -> str:
    """What stands before the names of the main model's modules, as vLLM asks about them: `language_model.`, or ""."""
    return "" if family.text(config) is config else draft_class(family).around


def as_asked(block: Mapping[str, object], family: Family, config: Mapping[str, object]) -> Mapping[str, object]:
    """The raw block with every name as vLLM asks about it; one that was renamed before comes back as it is."""
    before = around(family, config)
    if not before:
        return block
    found = _renamed(block, before, split=parse(block).method in _STARS)
    return block if found == block else found


def _renamed(block: Mapping[str, object], before: str, *, split: bool) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in block.items():
        if key in _LISTS and isinstance(value, list):
            entries = _split(value) if split and key in _EXCLUSIONS else value
            found[key] = [_name(entry, before) for entry in entries]
        elif key in _BY_NAME and isinstance(value, dict):
            found[key] = {_name(name, before): of for name, of in value.items()}
        else:
            found[key] = _renamed(value, before, split=split) if isinstance(value, dict) else value
    return found


def _name(entry: object, before: str) -> object:
    if not isinstance(entry, str):
        return entry
    if entry.startswith(WITHIN):
        return f"{before}model.{entry.removeprefix(WITHIN)}"
    return f"{before}{entry}" if entry.startswith(_HEAD) else entry


def _split(entries: list[object]) -> list[object]:
    split: list[object] = []
    for entry in entries:
        whole = isinstance(entry, str) and len(entry) > 1 and entry.endswith("*") and not entry.endswith(".*")
        split += [entry[:-1], f"{entry[:-1]}.*"] if isinstance(entry, str) and whole else [entry]
    return split
