"""The list of modules that vLLM makes from a target's tensor headers, where the block of AWQ or GPTQ has none.

    awq    modules_to_not_convert         modules whose every tensor is F16, BF16 or F32
    gptq   modules_in_block_to_quantize   modules that have another tensor

vLLM reads every header of the target. Here dtypes are read of the MTP layer alone, whose headers are read for other
reasons too; of all else the names of the tensors tell: a quantized module has `qweight`. A target without the layer
costs no byte more than its index.
Source: vllm quantization/auto_awq.py, auto_gptq.py, maybe_update_config (0.33.0).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.quantization import parse
from mtpforge.engines.vllm import auto_awq, auto_gptq
from mtpforge.engines.vllm.matrices import main_questions, questions
from mtpforge.engines.vllm.target_names import as_asked
from mtpforge.errors import MtpforgeError, Where
from mtpforge.families import Family

_FLOATS: Final = ("F16", "BF16", "F32")
_CODES: Final = "qweight"
# method -> key of its list, and whether that names the quantized modules
_LISTS: Final = {"awq": (auto_awq.LIST, False), "gptq": (auto_gptq.LIST, True)}


def in_force(target: Checkpoint, family: Family) -> Mapping[str, object]:
    """The target's raw block as vLLM asks it, with the list that it makes itself; names that no answer needs left out.

    MtpforgeError where there are no headers that could tell.
    """
    block, config = target.quantization, target.config
    key, of_quantized = _LISTS.get(parse(block).method, ("", False))
    if not key or block.get(key):
        return as_asked(block, family, config)
    if not target.names:
        raise MtpforgeError(
            "which modules of the target are quantized cannot be known",
            where=Where("config.json", inside=f"quantization_config.{key}"),
            why="the config does not say, and the tensors that would tell are not here",
            fix="name the whole target, its *.safetensors included: a folder, or `org/name`",
        )
    prefix = family.prefix(family.layer(config))
    ours = [name for name in target.names if prefix in name]
    floats = [name for name, ref in target.locate(ours).items() if ref.spec.dtype in _FLOATS] if ours else []
    listed = _listed(target.names, frozenset(ours), frozenset(floats), of_quantized=of_quantized)
    told = as_asked({**block, key: list(listed)}, family, config)
    names = told[key]
    known = sorted(
        name for asked in (*questions(family, config), *main_questions(family, config))
        for name in (asked.name, *asked.parts)
    )  # fmt: skip
    needed = (
        [name for name in names if isinstance(name, str) and _begins(name, known)] if isinstance(names, list) else []
    )
    return {**told, key: needed or [*listed[:1]]}


def written_out(target: Checkpoint, family: Family) -> Mapping[str, object]:
    """The target's raw block, which says by itself what it says with the list that vLLM makes."""
    key, _ = _LISTS.get(parse(target.quantization).method, ("", False))
    return in_force(target, family) if key and not target.quantization.get(key) else target.quantization


def _begins(name: str, known: list[str]) -> bool:
    """Whether any of the names, which are sorted, begins with a name."""
    place = bisect_left(known, name)
    return place < len(known) and known[place].startswith(name)


@lru_cache(maxsize=2)
def _listed(
    names: frozenset[str], ours: frozenset[str], floats: frozenset[str], *, of_quantized: bool
) -> tuple[str, ...]:
    """Modules that are quantized, or those that are not, by name. Of the tensors `ours` these are floats, `floats`.

    Names are cut at the last dot, whatever suffixes formats have: vLLM does. A target of GLM-5.2's size has 170,000
    names, and every head that it could have asks again.
    """
    quantized: dict[str, bool] = {}
    for name in names:
        module, _, suffix = name.rpartition(".")
        held = name not in floats if name in ours else suffix == _CODES
        quantized[module or name] = held or quantized.get(module or name, False)
    return tuple(sorted(module for module, held in quantized.items() if held == of_quantized))
