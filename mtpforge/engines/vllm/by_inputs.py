"""Restating AWQ, GPTQ and AutoRound: the layer dense, or in what the method can give a matrix of its own.

    awq          one way for all: the list of dense modules, whose entries are parts of names
    gptq         rules of the layer's own before all others, for the first that matches decides; and a list that holds
                 the layer whole, for a rule makes no linear quantized
    auto-round   an entry for every matrix by its own name, which comes before all others

What vLLM makes of tensor headers it makes no longer where a block has a list: so the list is stated whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from mtpforge.checkpoint import stating
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines.vllm import auto_awq, auto_gptq, inc
from mtpforge.engines.vllm.wish import Block, Wish
from mtpforge.errors import MtpforgeError
from mtpforge.formats import label
from mtpforge.tensors import Quantization

_DENSE: Final = {"bits": 16, "data_type": "float"}


def awq(block: Block, wish: Wish) -> Iterator[Block]:
    """Entries for the layer's dense modules; those that say it of quantized ones say it of the other layers alone."""
    quantized = [name for asked in wish.quantized for name in (asked.name, *asked.parts)]
    others = [name for asked in wish.main for name in (asked.name, *asked.parts)]
    listed = block.get(auto_awq.LIST)
    entries: list[str] = []
    for entry in map(str, listed if isinstance(listed, list) else ()):
        if not any(entry in name for name in quantized):
            entries.append(entry)
        else:
            entries += [name[: name.index(entry) + len(entry)] for name in others if entry in name]
    dense = wish.layer.names(wish.layer.dense) if wish.quantized else [wish.layer.prefix]
    yield {**block, auto_awq.LIST: list(dict.fromkeys([*entries, *dense]))}


def gptq(block: Block, wish: Wish) -> Iterator[Block]:
    """Rules for the layer before those of the block; the list with what is quantized in every layer said once."""
    layer, held = wish.layer, block.get("dynamic")
    rules: dict[str, object] = {f"-:{layer.expression(layer.dense)}": {}} if layer.dense else {}
    rules |= {f"+:{layer.expression(members)}": stating.integers(q) for q, members in layer.sets.items()}
    rules |= {k: v for k, v in held.items() if k not in rules} if isinstance(held, dict) else {}
    listed = block.get(auto_gptq.LIST)
    if not listed:  # without one all are quantized
        yield {**block, "dynamic": rules}
        return
    entries = [*auto_gptq.flat(listed)]
    linears = {name for asked in wish.main if not asked.experts for name in asked.parts}
    quantized = sorted(name for name in linears if any(entry in name for entry in entries))
    in_layers = list(dict.fromkeys(name.partition(".layers.")[2].partition(".")[2] or name for name in quantized))
    for names in (entries, in_layers, quantized):
        yield {**block, "dynamic": rules, auto_gptq.LIST: [*names, layer.prefix]}


def auto_round(block: Block, wish: Wish) -> Iterator[Block]:
    """An entry of `extra_config` for each matrix that vLLM asks about, the layer's own head among them."""
    held = block.get("extra_config")
    extra = dict(held) if isinstance(held, dict) else {}
    for asked in wish.asked:
        q = wish.layer.stored[asked.templates[0]]
        _refuse_other_packing(q, block)
        extra[asked.name] = dict(_DENSE) if q.is_dense else stating.integers(q)
    extra[wish.layer.heads[0]] = dict(_DENSE)  # it is replaced by the target's, but made first
    yield {**block, "extra_config": extra}


def _refuse_other_packing(q: Quantization, block: Block) -> None:
    if not q.is_dense and q.format != _packing(block):
        raise MtpforgeError(f"the target packs its weights as {_packing(block)}, which has no {label(q)}")


def as_awq(q: Quantization, _block: Block) -> Quantization:
    """Four bits with zero points are AWQ's."""
    is_awq = q.format == "pack_quantized" and q.bits == auto_awq.BITS and not q.symmetric and q.group_size
    return _stored(q, "awq") if is_awq else q


def as_gptq(q: Quantization, block: Block) -> Quantization:
    """Symmetric integers without activations are GPTQ's, in the target's own way to store zero points."""
    form = str(block.get("checkpoint_format") or "gptq").lower()
    return _stored(q, form) if q.format == "gptq" or _is_symmetric(q) else q


def as_auto_round(q: Quantization, block: Block) -> Quantization:
    """GPTQ's or AWQ's, as the target packs."""
    return as_gptq(q, {}) if _packing(block) == "gptq" else as_awq(q, block)


def _is_symmetric(q: Quantization) -> bool:
    return q.format == "pack_quantized" and q.symmetric and q.input_scale == "none"


def _stored(q: Quantization, form: str) -> Quantization:
    return replace(q, format=form, scale_dtype="F16")


def _packing(block: Block) -> str:
    return "awq" if str(parse(block).raw.get("packing_format")) == inc.AWQ else "gptq"
