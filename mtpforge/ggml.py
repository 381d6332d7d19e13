"""The types of GGUF's tensors: how many numbers make a block, and how many bytes it takes. Plain Python.

    numbers of a row   |----- block -----|----- block -----|  ...     rows follow one another without a gap

Source: gguf 0.19.0 constants.py, GGMLQuantizationType and GGML_QUANT_SIZES; quants.py for what is decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One type. block: numbers that are stored together. n_bytes: what a block takes.

    dtype: for plain numbers, as safetensors names it, "" for codes. is_read: whether weights may be stored so.
    """

    name: str
    number: int
    block: int
    n_bytes: int
    dtype: str = ""
    is_read: bool = True

    @property
    def bits(self) -> int:
        """Bits of a code, by the type's own name: 4 for Q4_K, IQ4_XS and NVFP4."""
        found = re.search(r"\d+", self.name)
        return int(found[0]) if found else 0

    @property
    def part(self) -> str:
        """What the part of a weight is called that is stored so: `weight_q4_k`; `weight` for plain numbers."""
        return "weight" if self.dtype else f"weight_{self.name.lower()}"


TYPES: Final[dict[int, GgmlType]] = {
    t.number: t
    for t in (
        GgmlType("F32", 0, 1, 4, "F32"),
        GgmlType("F16", 1, 1, 2, "F16"),
        GgmlType("Q4_0", 2, 32, 18),
        GgmlType("Q4_1", 3, 32, 20),
        GgmlType("Q5_0", 6, 32, 22),
        GgmlType("Q5_1", 7, 32, 24),
        GgmlType("Q8_0", 8, 32, 34),
        GgmlType("Q8_1", 9, 32, 40, is_read=False),
        GgmlType("Q2_K", 10, 256, 84),
        GgmlType("Q3_K", 11, 256, 110),
        GgmlType("Q4_K", 12, 256, 144),
        GgmlType("Q5_K", 13, 256, 176),
        GgmlType("Q6_K", 14, 256, 210),
        GgmlType("Q8_K", 15, 256, 292, is_read=False),
        GgmlType("IQ2_XXS", 16, 256, 66),
        GgmlType("IQ2_XS", 17, 256, 74),
        GgmlType("IQ3_XXS", 18, 256, 98),
        GgmlType("IQ1_S", 19, 256, 50),
        GgmlType("IQ4_NL", 20, 32, 18),
        GgmlType("IQ3_S", 21, 256, 110),
        GgmlType("IQ2_S", 22, 256, 82),
        GgmlType("IQ4_XS", 23, 256, 136),
        GgmlType("I8", 24, 1, 1, "I8", is_read=False),
        GgmlType("I16", 25, 1, 2, "I16", is_read=False),
        GgmlType("I32", 26, 1, 4, "I32", is_read=False),
        GgmlType("I64", 27, 1, 8, "I64", is_read=False),
        GgmlType("F64", 28, 1, 8, "F64", is_read=False),
        GgmlType("IQ1_M", 29, 256, 56),
        GgmlType("BF16", 30, 1, 2, "BF16"),
        GgmlType("TQ1_0", 34, 256, 54),
        GgmlType("TQ2_0", 35, 256, 66),
        GgmlType("MXFP4", 39, 32, 17),
        GgmlType("NVFP4", 40, 64, 36),
        GgmlType("Q1_0", 41, 128, 18, is_read=False),
    )
}
CODED: Final[dict[str, GgmlType]] = {t.name: t for t in TYPES.values() if not t.dtype and t.is_read}
