"""carry(): a target's quantization block, changed so that SGLang builds the layer that lies in the target as wanted.

Without a draft of its own SGLang takes the target's folder once more, and the block of its config.json decides, asked
under `model.decoder.` (DeepseekModelNextN, 0.5.23). No name of the model around the layer begins so: what is added for
the layer changes nothing else. The layer's own names are stated too, for engines that ask under those.

compressed-tensors    groups of the layer before all others, entries of the ignore list that do not speak of it
fp8                   the list of what is left dense
none                  the block of a draft, which leaves the model around it dense where its method has a list for that
others                as they are
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final, TypeAlias

from mtpforge.checkpoint import stating
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines.engine import own_config
from mtpforge.engines.sglang import quantization_block
from mtpforge.engines.sglang.demands import scheme_of
from mtpforge.engines.sglang.matrices import DECODER, Asked, main_questions, questions
from mtpforge.engines.sglang.name_matching import ignored
from mtpforge.engines.sglang.quantization_block import Layer
from mtpforge.engines.sglang.quantization_methods import W4AFP8, decide
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family
from mtpforge.scheme import Rule, Scheme, built_otherwise
from mtpforge.tensors import Quantization

Block: TypeAlias = Mapping[str, object]
_OURS: Final = "mtp"  # config groups of the layer
_NEXTN: Final = "num_nextn_predict_layers"
_OF_PATCHED: Final = "mtp_quantization_config"  # which only patched builds read, and which speaks of another layer
_COMPRESSED: Final = {"modelopt_nvfp4": "nvfp4", "fp8_block": "fp8_scaled"}


def carry(target: Checkpoint, family: Family, wanted: Scheme) -> Block:
    """The raw block under which SGLang builds the layer in the target as wanted, and the rest of the model as before.

    The target's own where that says so already. MtpforgeError where no block of the target's method says it, or where
    SGLang loads no layer of that scheme.
    """
    block, why = target.quantization, ""
    rules = _spelled(wanted, family, target.config, parse(block).method)
    with errors_of(target):
        for proposal in (block, *_proposals(block, target, family, rules)):
            told = target if proposal is block else target.restated(proposal)
            found = _contradiction(told, family, rules) or disturbed(target, told, family)
            if not found:
                return proposal
            why = found  # of the last one, which says the most
    method = parse(block).method
    raise MtpforgeError(
        f"SGLang would not load a layer of scheme {wanted.name} from a target of method `{shown(method) or 'none'}`",
        where=target.label,
        why=why,
    )


def carrying_config(target: Checkpoint) -> dict[str, object]:
    """The target's config.json with the layer counted; what only patched builds read of a layer goes."""
    return {key: value for key, value in target.config.items() if key != _OF_PATCHED} | {_NEXTN: 1}


def disturbed(target: Checkpoint, told: Checkpoint, family: Family) -> str:
    """The first matrix around the layer that SGLang builds otherwise for `told` than for the target, "" for none."""
    before, after = parse(target.quantization), parse(told.quantization)
    for asked in main_questions(family, target.config):
        if _answer(before, asked) != _answer(after, asked):
            return f"`{asked.names[0]}` would no longer be built as it is stored"
    return ""


def _answer(block: object, asked: Asked) -> object:
    try:
        return decide(block, asked)[0]  # type: ignore[arg-type]
    except MtpforgeError as error:
        return error.what, error.why


def _contradiction(told: Checkpoint, family: Family, wanted: Scheme) -> str:
    """What of the layer would be built otherwise than wanted, "" where all of it is."""
    try:
        built = scheme_of(own_config(told), family)
    except MtpforgeError as error:
        return "; ".join(filter(None, (error.what, error.why)))
    return built_otherwise(built, wanted)


def _spelled(wanted: Scheme, family: Family, config: Block, method: str) -> Scheme:
    """The scheme in the formats of a method: the same bytes under other names."""
    layer = quantization_block.layer_of(config, family, wanted)
    if method == "" and not stating.is_fp8(layer.kinds) and W4AFP8 not in layer.kinds:
        method = "compressed-tensors"

    def spelled(q: Quantization) -> Quantization:
        if method == "compressed-tensors":
            return replace(q, format=_COMPRESSED.get(q.format, q.format))
        if method == "fp8" and q.format == "fp8_scaled" and q.block is not None:
            return replace(q, format="fp8_block")
        return q

    rules = tuple(Rule(rule.pattern, spelled(rule.quantization), rule.reason) for rule in wanted.rules)
    return Scheme(wanted.name, rules, wanted.description)


def _proposals(block: Block, target: Checkpoint, family: Family, wanted: Scheme) -> Iterator[Block]:
    propose = _METHODS.get(parse(block).method)
    if propose is not None:
        yield from propose(block, target.config, family, wanted)


def _compressed_tensors(block: Block, config: Block, family: Family, wanted: Scheme) -> Iterator[Block]:
    """Another list of dense modules; then groups of the layer's own before all others: by name the first one wins.

    The format of the whole stays: packed experts of the model load under no other.
    """
    layer = quantization_block.layer_of(config, family, wanted)
    asked_about = questions(family, config, DECODER)
    quantized = [asked for asked in asked_about if not layer.stored[asked.templates[0]].is_dense]
    names = [name for asked in quantized for name in (*asked.names, *asked.shards)]
    entries = [_freed(entry, layer) if _is_about(entry, names) else entry for entry in parse(block).ignore]
    dense = [m for m in family.modules(config, 1) if wanted.of(m.template).quantization.is_dense]  # asked or not
    entries += [layer.pattern(dense)] if dense else []
    listed = {**block, "ignore": list(dict.fromkeys(entries))}
    yield listed
    held = block.get("config_groups")
    if layer.kinds and stating.is_compressed(layer.kinds):
        ours = {f"{_OURS}_{n}": stating.group(q, [layer.pattern(of)]) for n, (q, of) in enumerate(layer.sets.items())}
        rest = {name: group for name, group in held.items() if name not in ours} if isinstance(held, Mapping) else {}
        yield {**listed, "config_groups": {**ours, **rest}}


def _is_about(entry: str, names: list[str]) -> bool:
    return any(ignored(name, (entry,)) for name in names)


def _freed(entry: str, layer: Layer) -> str:
    """An entry of the ignore list that says what it said, but nothing of the layer."""
    # An entry that is no expression counts for every name that ends with it.
    local = entry.removeprefix("re:") if entry.startswith("re:") else f"(?:.*[.])?{re.escape(entry)}$"
    return f"re:(?!{layer.prefix})(?:{local})"


def _fp8(block: Block, config: Block, family: Family, wanted: Scheme) -> Iterator[Block]:
    """One quantization for all: the layer's modules are in the list or not."""
    key = "ignored_layers" if block.get("ignored_layers") else "modules_to_not_convert"
    layer = quantization_block.layer_of(config, family, wanted)
    number = f"model.layers.{layer.number}."
    kept = [entry for entry in parse(block).ignore if not entry.startswith((DECODER, number))]
    dense = layer.names(layer.dense)
    yield {**block, key: [*kept, *(prefix + name for prefix in (DECODER, number) for name in dense)]}


def _unquantized(_block: Block, config: Block, family: Family, wanted: Scheme) -> Iterator[Block]:
    """The block of a draft, and every matrix around the layer in its list. MtpforgeError where its method has none."""
    layer = quantization_block.layer_of(config, family, wanted)
    stated = quantization_block.block(family.text(config), family, wanted)
    method = str(stated.get("quant_method", ""))
    if why := _NO_LIST.get(method, "") or layer.known.joined.get(method, ""):
        raise MtpforgeError(
            f"a block of {method} does not leave the model around the layer as it is",
            where="config.json",
            why=why,
        )
    if method in _LISTS:
        key, around = _LISTS[method]
        listed = stated.get(key)
        names = dict.fromkeys(around(layer, family, config))
        yield {**stated, key: [*(listed if isinstance(listed, list) else ()), *names]}


def _all_but_the_layer(layer: Layer, _family: Family, _config: Block) -> Iterator[str]:
    yield f"re:(?!{layer.prefix})"


def _stored_names(_layer: Layer, family: Family, config: Block) -> Iterator[str]:
    """Every matrix on disk, the routed experts of a layer by one name."""
    for asked in main_questions(family, config):
        yield from (_stack(asked),) if asked.experts else asked.shards


def _run_names(_layer: Layer, family: Family, config: Block) -> Iterator[str]:
    """The same as SGLang runs them."""
    for asked in main_questions(family, config):
        yield from (_stack(asked),) if asked.experts else asked.names


def _stack(asked: Asked) -> str:
    """All routed experts by one name."""
    return "".join(asked.names[0].partition(".experts")[:2])


# quant_method of a draft's block -> its list of what is dense, and what stands there for the model around the layer.
_LISTS: Final[dict[str, tuple[str, Callable[[Layer, Family, Block], Iterator[str]]]]] = {
    "awq": ("modules_to_not_convert", _run_names),
    "compressed-tensors": ("ignore", _all_but_the_layer),
    "fp8": ("modules_to_not_convert", _stored_names),
    "modelopt": ("ignore", _stored_names),  # of MXFP8, read as that of method fp8: no expressions
}
_NO_LIST: Final = {
    "gptq": "SGLang follows no rule of `dynamic` for experts: all of the model would be built as GPTQ's",
    "w4afp8": "SGLang reads no list of that method: all of the model would be built so",
}
_METHODS: Final[dict[str, Callable[[Block, Block, Family, Scheme], Iterator[Block]]]] = {
    "": _unquantized,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
}
