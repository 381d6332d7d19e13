"""How each quantization method could say something else of one layer and the same of all others: proposals, unproven.

METHODS     quant_method -> Method: `proposals` of a block, and `spelled`, a quantization as the method stores it

Whether a proposal says what it should is for `restating` to find out, by asking it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mtpforge.checkpoint import stating
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines.expressions import exact_or_regex
from mtpforge.engines.vllm import by_inputs, quantization_block
from mtpforge.engines.vllm.layer_ranges import as_expressions, as_wildcards
from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.name_matching import excluded
from mtpforge.engines.vllm.quantization_block import Layer
from mtpforge.engines.vllm.wish import Block, Wish
from mtpforge.errors import MtpforgeError
from mtpforge.formats import label
from mtpforge.tensors import Quantization

_OURS: Final = "mtp"  # config groups of the layer
_MIXED: Final = "MIXED_PRECISION"


@dataclass(frozen=True, slots=True)
class Method:
    """proposals(block, wish): blocks that may say it, the shortest change first.

    spelled(quantization, block): a quantization, as this target's method stores it.
    """

    proposals: Callable[[Block, Wish], Iterator[Block]]
    spelled: Callable[[Quantization, Block], Quantization]


def _compressed_tensors(block: Block, wish: Wish) -> Iterator[Block]:
    """Another list of dense modules; then with groups of the layer's own before all others, as the first match wins."""
    names = [name for asked in wish.quantized for name in (asked.name, *asked.parts)]
    others = [name for asked in wish.main for name in (asked.name, *asked.parts)]
    entries = _freed(parse(block).ignore, wish.layer.prefix, names, others)
    entries += [wish.layer.pattern(wish.layer.dense)] if wish.layer.dense else []
    # vLLM makes the layer a head before it takes the target's: of a group of the target, no scheme may fit one.
    targets = [target for group in parse(block).groups for target in group.targets]
    entries += [head for head in wish.layer.heads if any(exact_or_regex(head, target) for target in targets)]
    for ignore in (as_expressions(entries), entries):
        listed = {**block, "ignore": ignore}
        yield listed
        yield {**listed, **_grouped(block, wish.layer)}


def _freed(entries: tuple[str, ...], prefix: str, names: list[str], others: list[str]) -> list[str]:
    """Entries that say what they said, but nothing of the names below `prefix`."""
    freed = []
    for entry in entries:
        if not entry.startswith("re:"):
            freed += [] if entry.startswith(prefix) else [entry]
        elif not any(exact_or_regex(name, entry) for name in names):
            freed.append(entry)
        elif any(exact_or_regex(name, entry) for name in others):
            freed.append(f"re:(?!{prefix.replace('.', '[.]')})(?:{entry.removeprefix('re:')})")
    return freed


def _grouped(block: Block, layer: Layer) -> dict[str, object]:
    """Groups with the layer's own first; each states its format, which those before had from the block."""
    held, ours = block.get("config_groups"), quantization_block.groups(layer, _OURS)
    form = block.get("format")
    before = held if isinstance(held, dict) else {}
    stated = {
        name: {**group, "format": group.get("format") or form} if isinstance(group, dict) and form else group
        for name, group in before.items()
        if name not in ours
    }
    return {"format": "mixed-precision", "config_groups": {**ours, **stated}} if ours else {}


def _fp8(block: Block, wish: Wish) -> Iterator[Block]:
    """One quantization for all: the layer's modules are in the list or not."""
    key = "ignored_layers" if block.get("ignored_layers") else "modules_to_not_convert"
    kept = [entry for entry in parse(block).ignore if wish.layer.prefix not in entry]  # below a wrapper it counts too
    yield {**block, key: [*kept, *wish.layer.names(wish.layer.dense)]}


def _modelopt(block: Block, wish: Wish) -> Iterator[Block]:
    """The list of excluded modules changed; then one algorithm for each module by name."""
    listed = _listed(block, _included(parse(block).ignore, wish))
    for change in (lambda: listed, lambda: _mixed(listed, block, wish)):
        yield _around(block, change())


def modelopt_without(block: Block, name: str) -> Block:
    """ModelOpt's block with one more module excluded."""
    return _around(block, _listed(block, [*parse(block).ignore, name]))


def _listed(block: Block, entries: list[str]) -> dict[str, Any]:
    """What says how modules are stored, the inner block where there is one, with this list of excluded modules."""
    inner = block.get("quantization")
    held = inner if isinstance(inner, dict) else block
    key = "ignore" if held is block and "ignore" in held else "exclude_modules"
    return {**held, key: entries}


def _around(block: Block, changed: Mapping[str, object]) -> Block:
    """The block with that in it."""
    named = {"quant_method": "modelopt"} if "quant_method" not in block else {}
    is_nested = isinstance(block.get("quantization"), dict)
    return {**block, **named, **_nested(changed)} if is_nested else {**changed, **named}


def _nested(changed: Mapping[str, object]) -> dict[str, object]:
    """The inner block. Of mixed precision vLLM takes it only beside this key, else the target's side file instead.

    vllm model_executor/model_loader/weight_utils.py:273, get_quant_config (0.33.0)
    """
    top: dict[str, object] = {"quantized_layers": {}} if "quantized_layers" in changed else {}
    return {"quantization": changed, **top}


def _included(entries: tuple[str, ...], wish: Wish) -> list[str]:
    """Entries that exclude of the model before the layer what they did, and of the layer what is to be dense."""
    kept, spelled = [], []
    for entry in entries:
        if not any(excluded(asked, [entry], "") for asked in wish.quantized):
            kept.append(entry)
        else:
            spelled += [asked.name for asked in wish.main if excluded(asked, [entry], "")]
    dense = [name for name in wish.layer.names(wish.layer.dense) if name not in kept]
    return [*as_wildcards([*kept, *spelled]), *dense]


def _mixed(listed: Mapping[str, object], block: Block, wish: Wish) -> dict[str, object]:
    ours = [(members, _algorithm(q)) for q, members in wish.layer.sets.items()]
    named = listed.get("quantized_layers")
    if isinstance(named, dict):
        layers = {name: layer for name, layer in named.items() if not name.startswith(wish.layer.prefix)}
    else:
        stored = ((asked, q) for asked, q in wish.main.items() if isinstance(q, Quantization) and not q.is_dense)
        layers = {name: _algorithm(q) for asked, q in stored for name in _parts(asked)}
    for members, algorithm in ours:
        layers |= dict.fromkeys(wish.layer.names(members), algorithm)
    has_scales = listed.get("kv_cache_scheme") or listed.get("kv_cache_quant_algo")
    if parse(block).quant_algo != _MIXED and has_scales and not _reads_scales(listed, block, wish):
        raise MtpforgeError(
            "under ModelOpt's mixed precision vLLM reads no scales of the KV cache, and the target has them"
        )
    rest = {key: value for key, value in listed.items() if key not in ("config_groups", "quant_algo")}
    return {**rest, "quant_algo": _MIXED, "quantized_layers": layers}


def _reads_scales(listed: Mapping[str, object], block: Block, wish: Wish) -> bool:
    """Whether scales of the KV cache are read under mixed precision as under any other algorithm.

    vllm quantization/modelopt.py:1849 (0.33.0) asks for `Attention`, all other algorithms for MLA's as well, and only
    where from_config of the base class saw FP8.
    """
    if isinstance(block.get("quantization"), dict):
        stated = bool(listed.get("kv_cache_quant_algo"))
    else:
        scheme = listed.get("kv_cache_scheme")
        stated = isinstance(scheme, dict) and (scheme.get("type"), scheme.get("num_bits")) == ("float", 8)
    return stated and wish.attention == "Attention"


def _algorithm(q: Quantization) -> dict[str, object]:
    if not stating.is_modelopt({q}):
        raise MtpforgeError(f"ModelOpt has no algorithm for {label(q)}")
    return stating.algorithm(q)


def _parts(asked: Asked) -> tuple[str, ...]:
    return (asked.name,) if asked.experts else asked.parts


def _quark(block: Block, wish: Wish) -> Iterator[Block]:
    """The list of modules that are left dense, which knows `re:` too; then configs by name, the first of which wins."""
    names = [name for asked in wish.quantized for name in (asked.name, *asked.parts)]
    others = [name for asked in wish.main for name in (asked.name, *asked.parts)]
    entries = _freed(parse(block).ignore, wish.layer.prefix, names, others) + wish.layer.names(wish.layer.dense)
    held = block.get("layer_quant_config")
    named: dict[str, object] = {}
    if stating.is_quark(wish.layer.sets):
        named = {name: stating.quark(q) for q, members in wish.layer.sets.items() for name in wish.layer.names(members)}
    for exclude in (as_expressions(entries), entries):
        yield {**block, "exclude": exclude}
        if named:
            rest = (
                {name: config for name, config in held.items() if name not in named} if isinstance(held, dict) else {}
            )
            yield {**block, "exclude": exclude, "layer_quant_config": {**named, **rest}}


def _unquantized(_block: Block, wish: Wish) -> Iterator[Block]:
    """A block whose groups name the layer alone."""
    yield {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": quantization_block.groups(wish.layer, _OURS),
        "ignore": ["lm_head", wish.layer.pattern(wish.layer.dense)],
        "kv_cache_scheme": None,
    }


_COMPRESSED: Final = {"modelopt_nvfp4": "nvfp4", "fp8_block": "fp8_scaled", "quark_mxfp4": "mxfp4"}


def _as_compressed(q: Quantization, _block: Block) -> Quantization:
    return replace(q, format=_COMPRESSED.get(q.format, q.format))


def _as_quark(q: Quantization, block: Block) -> Quantization:
    """MXFP4, INT4 and FP8 as Quark stores them; FP8 of rows beside activations that it quantizes."""
    if q.format == "pack_quantized" and (q.bits, q.strategy, q.input_scale) == (4, "group", "none"):
        export = block.get("export")
        is_in_order = isinstance(export, Mapping) and export.get("pack_method") == "order"
        return replace(q, format="quark_int4_in_order" if is_in_order else "quark_int4", scale_dtype="BF16")
    if q.format == "mxfp4":
        return replace(q, format="quark_mxfp4")
    if q.format == "fp8_block" or (q.format == "fp8_scaled" and q.strategy != "channel"):
        return replace(q, format="fp8_scaled")
    return replace(q, format="modelopt_fp8") if q.format == "fp8_scaled" else q


def _as_modelopt(q: Quantization, _block: Block) -> Quantization:
    return replace(q, format="modelopt_nvfp4" if q.format == "nvfp4" else q.format)


def _as_fp8(q: Quantization, _block: Block) -> Quantization:
    is_block = q.format == "fp8_scaled" and q.block is not None
    return replace(q, format="fp8_block" if is_block else q.format)


METHODS: Final[dict[str, Method]] = {
    "": Method(_unquantized, _as_compressed),
    "auto-round": Method(by_inputs.auto_round, by_inputs.as_auto_round),
    "awq": Method(by_inputs.awq, by_inputs.as_awq),
    "compressed-tensors": Method(_compressed_tensors, _as_compressed),
    "fp8": Method(_fp8, _as_fp8),
    "gptq": Method(by_inputs.gptq, by_inputs.as_gptq),
    "modelopt": Method(_modelopt, _as_modelopt),
    "quark": Method(_quark, _as_quark),
}
