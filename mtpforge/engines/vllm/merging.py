"""merged(): one quantization block for a model whose modules come from several checkpoints.

Every question that vLLM asks about the model is answered by the block of the checkpoint that its matrices come from. A
block is written that gives these answers, and asked; one that answers otherwise for any of them is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, TypeAlias

from mtpforge.checkpoint import stating
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.error_places import errors_of
from mtpforge.checkpoint.quantization import QuantConfig, parse
from mtpforge.engines.vllm import auto_awq, auto_gptq
from mtpforge.engines.vllm.header_lists import in_force, written_out
from mtpforge.engines.vllm.layer_ranges import as_expressions
from mtpforge.engines.vllm.matrices import Asked, main_questions, questions
from mtpforge.engines.vllm.quantization_methods import METHODS as KNOWN_HERE
from mtpforge.engines.vllm.quantization_methods import decide
from mtpforge.engines.vllm.target_names import as_asked
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family
from mtpforge.formats import label
from mtpforge.tensors import Quantization

Block: TypeAlias = Mapping[str, object]
Answers: TypeAlias = Mapping[Asked, Quantization]
_HEAD: Final = "lm_head"


def merged(
    sides: Sequence[Checkpoint], family: Family, origin: Callable[[str], int | None]
) -> tuple[Block, dict[str, Quantization]]:
    """The raw block of the whole, and how it has each module stored, by full name; expert 0 stands for all."""
    wanted = _answers(sides, family, origin)
    return _stated(sides[0], family, wanted), {name: q for asked, q in wanted.items() for name in asked.parts}


def _answers(sides: Sequence[Checkpoint], family: Family, origin: Callable[[str], int | None]) -> Answers:
    """How each matrix is stored by what its own checkpoint says. sides: the base first, whose config counts.

    origin: full name of a module -> the side that it is taken from, None where there is no such module. MtpforgeError
    for a matrix that vLLM runs as one and that two sides would share.
    """
    config = sides[0].config
    blocks = [_in_force(side, family) for side in sides]
    found: dict[Asked, Quantization] = {}
    for asked in (*main_questions(family, config), *questions(family, config)):
        of = {origin(name) for name in asked.parts} - {None}
        if len(of) > 1:
            raise MtpforgeError(
                f"`{asked.name}` would come from two checkpoints, and vLLM runs it as one matrix",
                why=f"its parts: {', '.join(asked.parts)}",
                fix="take all of them, or none",
            )
        for side in of:
            assert side is not None  # noqa: S101
            with errors_of(sides[side]):
                found[asked] = decide(blocks[side], asked)[0]
    return found


def _in_force(side: Checkpoint, family: Family) -> QuantConfig:
    """A side's block with the list that vLLM makes of its headers; MtpforgeError for a method without rules."""
    block = parse(in_force(side, family))
    if block.method not in KNOWN_HERE:
        raise MtpforgeError(
            f"how vLLM builds modules of method `{shown(block.method)}` is not known here",
            where=side.label,
            why=f"known: {', '.join(sorted(filter(None, KNOWN_HERE)))}; of others no block is proved to state it",
            fix="merge checkpoints of these methods, or unquantized ones",
        )
    return block


def _stated(base: Checkpoint, family: Family, wanted: Answers) -> Block:
    """The raw block that gives these answers, {} where all are dense; the base's own where that gives them already."""
    own = written_out(base, family)  # headers of the merge are others, and so would the list of them be
    if _contradiction(base, own, family, wanted) == "":
        return own
    kinds = {q for q in wanted.values() if not q.is_dense}
    why = "no method has words for all of it"
    for can, state in _METHODS if kinds else ((lambda _: True, lambda *_: {}),):
        if can(kinds):
            block = state(base.quantization, wanted)
            why = _contradiction(base, block, family, wanted)
            if not why:
                return block
    held = ", ".join(sorted(f"{label(q)} ({q.format})" for q in kinds))
    raise MtpforgeError(
        "no one quantization block can state this merge",
        where=base.label,
        why=f"{held}: {why}",
        fix="take from a checkpoint of the same method, or unquantized modules",
    )


def _contradiction(base: Checkpoint, block: Block, family: Family, wanted: Answers) -> str:
    """The first matrix that a block would have built otherwise, "" for none."""
    told = parse(as_asked(block, family, base.config))
    for asked, want in wanted.items():
        try:
            built = decide(told, asked)[0]
        except MtpforgeError as error:
            return error.why or error.what
        if built != want:
            return f"`{shown(asked.name)}` would be {label(built)}, stored is {label(want)}"
    return ""


def _sets(wanted: Answers) -> dict[Quantization, list[Asked]]:
    sets: dict[Quantization, list[Asked]] = {}
    for asked, q in wanted.items():
        if not q.is_dense:
            sets.setdefault(q, []).append(asked)
    return sets


def _compressed_tensors(base: Block, wanted: Answers) -> Block:
    """A group for each way in which weights are stored, whose targets name its matrices and no others."""
    sets = _sets(wanted)
    formats = {stating.compressed_format(q) for q in sets}
    groups = {f"group_{i}": stating.group(q, _targets(asked)) for i, (q, asked) in enumerate(sets.items())}
    quantized = {asked.name for members in sets.values() for asked in members}
    return {
        **(base if base.get("quant_method") == "compressed-tensors" else {}),
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [] if _HEAD in quantized else [_HEAD],
    }


def _targets(members: Collection[Asked]) -> list[str]:
    """Names of matrices, alone and fused, of many layers in one expression; of experts whatever their number."""
    names = []
    for asked in members:
        if asked.experts:
            names += [re.sub(r"[.]experts[.]\d+[.]", ".experts.*.", part) for part in asked.parts]
        else:
            names += dict.fromkeys((asked.name, *asked.parts))
    return [_any_number(entry) for entry in as_expressions(names)]


def _any_number(entry: str) -> str:
    if "*" not in entry:
        return entry
    if entry.startswith("re:"):
        return entry.replace(r"\*", "[0-9]+")
    return "re:" + entry.replace(".", "[.]").replace("*", "[0-9]+") + "$"


def _modelopt(base: Block, wanted: Answers) -> Block:
    """Mixed precision: an algorithm for each module by name."""
    if base.get("kv_cache_scheme") or base.get("kv_cache_quant_algo"):
        raise MtpforgeError(
            "under ModelOpt's mixed precision vLLM reads no scales of the KV cache, and the base has them"
        )
    layers = {
        name: stating.algorithm(q)
        for q, members in _sets(wanted).items()
        for asked in members
        for name in ((asked.name,) if asked.experts else asked.parts)
    }
    return {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "producer": base.get("producer") or {"name": "modelopt"},
        "quantized_layers": layers,
        "ignore": [],
    }


def _fp8(base: Block, wanted: Answers) -> Block:
    """One quantization for all, and a list of what is left dense."""
    (q,) = _sets(wanted)
    dense = [n for asked, w in wanted.items() if w.is_dense for n in ((asked.name,) if asked.experts else asked.parts)]
    stated = base if base.get("quant_method") == "fp8" else {"quant_method": "fp8", "fmt": "e4m3"}
    return {
        **{key: value for key, value in stated.items() if key != "ignored_layers"},
        "activation_scheme": q.input_scale,
        "modules_to_not_convert": dense,
    } | ({} if q.block is None else {"weight_block_size": list(q.block)})


def _awq(base: Block, wanted: Answers) -> Block:
    """One quantization for all, and a list of what is left dense, never an empty one: vLLM would make its own."""
    (q,) = _sets(wanted)
    stated = base if parse(base).method == "awq" else {"quant_method": "awq", "version": "gemm"}
    sized = {"bits": q.bits, "group_size": q.group_size, "zero_point": not q.symmetric}
    return {**stated, **sized, auto_awq.LIST: _dense(wanted)}


def _gptq(base: Block, wanted: Answers) -> Block:
    """Rules for what is left dense before those of the base; the list, which says less, goes."""
    first = next(iter(_sets(wanted)))
    plain = {"quant_method": "gptq", **stating.integers(first), "desc_act": False, "checkpoint_format": first.format}
    stated = base if parse(base).method == "gptq" else plain
    held = stated.get("dynamic")
    dense: dict[str, object] = {f"-:{re.escape(name)}$": {} for name in _dense(wanted)}
    rest = {key: value for key, value in stated.items() if key != auto_gptq.LIST}
    return {**rest, "dynamic": {**dense, **(held if isinstance(held, Mapping) else {})}}


def _dense(wanted: Answers) -> list[str]:
    """Names of what is left dense, as vLLM asks and by part."""
    asked = [a for a, q in wanted.items() if q.is_dense]
    return list(dict.fromkeys(name for a in asked for name in (a.name, *(() if a.experts else a.parts))))


_Can: TypeAlias = Callable[[set[Quantization]], bool]
_METHODS: Final[tuple[tuple[_Can, Callable[[Block, Answers], Block]], ...]] = (
    (stating.is_compressed, _compressed_tensors),
    (stating.is_modelopt, _modelopt),
    (stating.is_fp8, _fp8),
    (stating.is_awq, _awq),
    (stating.is_gptq, _gptq),
)
