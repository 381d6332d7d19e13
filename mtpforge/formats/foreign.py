"""Formats that are known by the names of their tensors and not read.

Codes of theirs mean nothing without tables and kernels of their own libraries, and what they were made from is there to
be read instead.

Sources of the names: bitsandbytes functional.py, QuantState.as_dict, and nn/modules.py, Linear8bitLt; aqlm
inference.py, QuantizedLinear; vptq layers/vqlinear.py, VQuantLinear; exllamav3 modules/quant/exl3.py; exllamav2
linear.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_MARKS: Final = {
    ".weight.absmax": "bitsandbytes' FP4 or NF4",
    ".weight.quant_map": "bitsandbytes' FP4 or NF4",
    ".SCB": "bitsandbytes' LLM.int8",
    ".codebooks": "AQLM",
    ".centroids.weight": "VPTQ",
    ".trellis": "EXL3",
    ".q_weight": "EXL2",
}  # how a tensor's name ends -> whose it is


def foreign(names: Iterable[str]) -> tuple[str, str] | None:
    """The first of tensors, in name order, that belongs to such a format, and the format; None where none does."""
    found = ((name, whose) for name in sorted(names) for mark, whose in _MARKS.items() if name.endswith(mark))
    return next(found, None)
