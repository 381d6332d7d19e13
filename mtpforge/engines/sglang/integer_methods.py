"""What methods awq and gptq say about one matrix. SGLang runs both by Marlin, or not at all beside BF16.

awq     one way to store for all but what the list names: an entry counts wherever it stands in a name
gptq    rules by expression, from a name's start, the first that fits: `-:` leaves a linear dense, others change bits
        or groups. No rule is asked for the experts: they are always stored as the block says
Both ask by the names that SGLang runs, fused ones and the stack of the experts; neither renames an entry.
Source: sglang srt/layers/quantization/{awq/awq.py,gptq/gptq.py,utils.py,marlin_utils.py} (0.5.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mtpforge.checkpoint.json_fields import Fields
from mtpforge.checkpoint.quantization import QuantConfig
from mtpforge.engines.expressions import followed, quoted
from mtpforge.engines.sglang.matrices import Asked, Decision
from mtpforge.engines.sglang.refusals import refused
from mtpforge.errors import shown
from mtpforge.tensors import BF16, Quantization

_LIST: Final = "modules_to_not_convert"
_GROUPS: Final = (32, 64, 128)  # MARLIN_SUPPORTED_GROUP_SIZES, but for -1
_AWQ_BITS: Final = 4
_GPTQ_BITS: Final = (4, 8)


def awq(block: QuantConfig, asked: Asked) -> Decision:
    """AWQMarlinConfig. What it does not take falls to AWQConfig, which is refused beside BF16."""
    wanted = {"bits": block.raw.get("bits"), "zero_point": block.raw.get("zero_point")}
    size = block.raw.get("group_size")
    if wanted != {"bits": _AWQ_BITS, "zero_point": True} or size not in _GROUPS or not isinstance(size, int):
        why = "Marlin takes 4 bits with zero points in groups of 32, 64 or 128, and without it"
        raise refused(
            "no such AWQ block is run by Marlin",
            "group_size",
            f"{why} `torch.bfloat16 is not supported for quantization method awq`",
        )
    entry = next((e for e in Fields(block.raw, "quantization_config").texts(_LIST) if e in _stack(asked)), None)
    if entry is None:
        return Quantization("awq", _AWQ_BITS, "", "group", size, symmetric=False, scale_dtype="F16"), "method awq"
    return BF16, f"{_LIST} entry `{quoted(entry)}`"


def gptq(block: QuantConfig, asked: Asked) -> Decision:
    """GPTQMarlinConfig. Zero points of symmetric weights are not read, so both ways to store them load."""
    base = {key: block.raw.get(key) for key in ("bits", "group_size", "sym")}
    form = str(block.raw.get("checkpoint_format") or "gptq").lower()
    if form not in ("gptq", "gptq_v2") or block.raw.get("desc_act") is not False:
        why = "what is stored in act-order, or for another kernel, is not written here"
        raise refused("no such GPTQ block is written", "desc_act", why)
    rules = block.raw.get("dynamic")
    fitting = (
        (rule, of)
        for rule, of in (rules if isinstance(rules, Mapping) else {}).items()
        if followed(rule.removeprefix("-:").removeprefix("+:"), _stack(asked), rule)
    )
    rule, of = ("", {}) if asked.experts else next(fitting, ("", {}))
    if rule.startswith("-:"):
        return BF16, f"dynamic rule `{quoted(rule)}`"
    changed = base | ({key: of[key] for key in base if key in of} if isinstance(of, Mapping) else {})
    reason = f"dynamic rule `{quoted(rule)}`" if rule else "method gptq"
    return _integers(form, **changed), reason


def _integers(form: str, bits: object, group_size: object, sym: object) -> Quantization:
    if bits not in _GPTQ_BITS or not isinstance(bits, int) or sym is not True:
        why = f"`Unsupported quantization config: bits={shown(bits)}, sym={shown(sym)}`"
        raise refused("GPTQ but of 4 and 8 bits, symmetric, is not run by Marlin", "bits", why)
    if group_size == -1:
        return Quantization(form, bits, "", "channel", symmetric=True, scale_dtype="F16")
    if group_size not in _GROUPS or not isinstance(group_size, int):
        why = f"`Marlin does not support group_size = {shown(group_size)}`"
        raise refused("no such groups of GPTQ are run by Marlin", "group_size", why)
    return Quantization(form, bits, "", "group", group_size, symmetric=True, scale_dtype="F16")


def _stack(asked: Asked) -> str:
    """The name that is asked about, of the experts their stack's."""
    return "".join(asked.names[0].partition(".experts")[:2]) if asked.experts else asked.names[0]
