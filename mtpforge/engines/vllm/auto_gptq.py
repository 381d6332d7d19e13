"""vLLM's reading of a GPTQ block: which linears are quantized, then rules by expression, the first that matches.

    modules_in_block_to_quantize   linears that contain an entry, by their names on disk; experts are not asked about.
                                   Where the block has no such list vLLM makes one from the target's tensor headers
                                   (`header_lists`)
    dynamic                        `-:` leaves a matrix dense, `+:` or nothing gives it other bits or groups. By the
                                   names that vLLM runs, fused ones and the stack of the experts, from their start

Symmetric weights of 4 and 8 bits alone, without act-order; zero points are stored and never read, `checkpoint_format`
is not looked at.
Source: vllm quantization/auto_gptq.py, utils/gptq_utils.py, utils/marlin_utils.py (0.33.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from mtpforge.checkpoint.quantization import QuantConfig
from mtpforge.engines.expressions import followed, quoted
from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.refusals import needed, refused, unmade
from mtpforge.errors import shown
from mtpforge.tensors import BF16, Quantization

LIST: Final = "modules_in_block_to_quantize"
_WHAT: Final = "vLLM takes no such GPTQ block"
_BITS: Final = (4, 8)
_SIZES: Final = (-1, 32, 64, 128)  # MARLIN_SUPPORTED_GROUP_SIZES
_EXPERT_COLUMNS: Final = 128  # check_moe_marlin_supports_config: hidden size
_FORMATS: Final = ("gptq", "gptq_v2")


def decide(block: QuantConfig, asked: Asked) -> tuple[Quantization, str]:
    """How vLLM would build a matrix, and which entry decided."""
    bits, size, act_order, symmetric = (needed(block.raw, key) for key in ("bits", "group_size", "desc_act", "sym"))
    dynamic = block.raw.get("dynamic")
    rules = dynamic if isinstance(dynamic, Mapping) else {}
    _refuse_act_order(act_order, size, rules)
    _supported(bits, symmetric)
    if asked.is_head and block.raw.get("lm_head") is not True:
        return BF16, "lm_head is not true"
    entry = None if asked.experts else _listed(asked, block.raw.get(LIST))
    if asked.experts and not has_kernel(asked, size):
        raise unmade(f"GPTQ experts in groups of {shown(size)}, for which Marlin has no kernel,", "group_size")
    rule, of = next(_matching(rules, asked.name), ("", {}))
    if rule.startswith("-:"):
        return BF16, f"dynamic rule `{quoted(rule)}`"
    if entry is False:
        return BF16, f"no {LIST} entry"
    changed = {"bits": bits, "group_size": size, "sym": symmetric} | {k: v for k, v in of.items() if isinstance(v, int)}
    _supported(changed["bits"], changed["sym"])
    reason = f"dynamic rule `{quoted(rule)}`" if rule else "method gptq, no dynamic rule"
    return _stored(block, asked, changed["bits"], changed["group_size"]), reason


def quantization(asked: Asked, bits: object, size: object, form: str = "gptq") -> Quantization:
    """How a symmetric matrix of 4 or 8 bits is stored in groups of `size`, -1 for one scale a row."""
    if asked.experts and not has_kernel(asked, size):
        raise unmade(f"GPTQ experts in groups of {shown(size)}, for which Marlin has no kernel,", "group_size")
    if size not in _SIZES or not isinstance(size, int) or not isinstance(bits, int):
        raise refused(_WHAT, "group_size", f"`Marlin does not support group_size = {shown(size)}`")
    if size > 0 and (cut := next((n for n in asked.columns if n % size), None)):
        raise unmade(f"GPTQ weights of {cut} columns in groups of {size}", "group_size")
    if size < 0:
        return Quantization(form, bits, "", "channel", symmetric=True, scale_dtype="F16")
    return Quantization(form, bits, "", "group", size, symmetric=True, scale_dtype="F16")


def _stored(block: QuantConfig, asked: Asked, bits: object, size: object) -> Quantization:
    form = str(block.raw.get("checkpoint_format") or _FORMATS[0]).lower()
    if form not in _FORMATS:
        raise unmade(f"GPTQ weights in checkpoint_format {shown(form)}", "checkpoint_format")
    return quantization(asked, bits, size, form)


def _supported(bits: object, symmetric: object) -> None:
    if bits not in _BITS or not symmetric:
        raise refused(_WHAT, "bits", f"`Unsupported quantization config: bits={shown(bits)}, sym={shown(symmetric)}`")


def _refuse_act_order(act_order: object, size: object, rules: Mapping[str, object]) -> None:
    """normalize_and_validate_gptq_desc_act: an order of one group is none."""
    of_rules = [of for rule, of in rules.items() if not rule.startswith("-:") and isinstance(of, Mapping)]
    for of in ({}, *of_rules):
        if of.get("desc_act", act_order) and of.get("group_size", size) != -1:
            why = "`GPTQ group activation ordering (desc_act=True) is no longer supported`"
            raise refused(_WHAT, "desc_act", why, "a release without act-order")


def _listed(asked: Asked, entries: object) -> bool:
    """is_layer_gptq_quantized: whether the parts of a matrix contain an entry; without any entry all are quantized."""
    names = list(flat(entries))
    if not names:
        return True
    by_part = {
        part: any(entry in part for entry in names) for part in (asked.parts if asked.is_fused else [asked.name])
    }
    if len(set(by_part.values())) > 1:
        outside = [part.rpartition(".")[2] for part, inside in by_part.items() if not inside]
        raise refused(
            f"the target quantizes `{asked.name}` but for {' and '.join(outside)}",
            LIST,
            "`Detected some but not all shards of a layer are quantized`",
            f"list {' and '.join(outside)} as well in the target's config.json, or none of its parts",
        )
    return True in by_part.values()


def flat(entries: object) -> Iterator[str]:
    """The entries of a list that may hold lists, one for each step of a block."""
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, list):
            yield from flat(entry)
        else:
            yield str(entry)


def has_kernel(asked: Asked, size: object) -> bool:
    """Whether Marlin runs experts in such groups (check_moe_marlin_supports_layer).

    Where not, vLLM's moe_wna16 does, by the block as it stands, and turns the weights over as it reads them.
    """
    if size not in _SIZES or not isinstance(size, int):
        return False
    return asked.columns[0] % _EXPERT_COLUMNS == 0 and (size < 0 or asked.columns[-1] % size == 0)


def _matching(rules: Mapping[str, object], name: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """get_dynamic_override: the rules that match a name from its start."""
    for rule, of in rules.items():
        if followed(rule.removeprefix("-:").removeprefix("+:"), name, rule):
            yield rule, of if isinstance(of, Mapping) else {}
