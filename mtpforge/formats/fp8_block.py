"""FP8 with one scale a block: the checkpoints of DeepSeek V3 and of GLM-5.2-FP8.

    weight             F8_E4M3       [out, in]
    weight_scale_inv   F32 or BF16   [ceil(out / 128), ceil(in / 128)]      read; written as F32

    value[r, c] = float32(weight[r, c]) * float32(weight_scale_inv[r // 128, c // 128])

Edge blocks are cut, not padded: 576 rows have 5 rows of scales. `_inv` is history: the stored number multiplies.
Sources: DeepSeek-V3 inference/kernel.py, weight_dequant; vLLM 0.33.0 quantization/fp8.py (F32 scales).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.formats import blocks
from mtpforge.formats.format import Codes, Format, PackedRows, PartRows, Specs, only_rows
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

TAKES: Final = {
    "bits": (8,),
    "strategy": ("block",),
    "scale_dtype": blocks.SCALES,
    "input_scale": ("none", "dynamic"),
}


def recognise(parts: Specs, shape: Shape, block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are FP8 with a scale a block."""
    if set(parts) != {"weight", "weight_scale_inv"} or parts["weight"] != Spec("F8_E4M3", shape):
        return None
    scale = parts["weight_scale_inv"]
    covers = blocks.fitting(scale.shape, shape, block)
    if covers is None or scale.dtype not in blocks.SCALES:
        return None
    return Quantization("fp8_block", bits=8, strategy="block", block=covers, scale_dtype=scale.dtype)


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    return {
        "weight": Spec("F8_E4M3", shape),
        "weight_scale_inv": Spec(
            quantization.scale_dtype or "F32", blocks.grid(shape, quantization.block or blocks.USUAL)
        ),
    }


def rows_in_parts(_shape: Shape, quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """A row of scales covers a row of blocks."""
    return {"weight": PartRows(), "weight_scale_inv": PartRows(rows=(quantization.block or blocks.USUAL)[0])}


def decode(parts: Mapping[str, Tensor], _shape: Shape, quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    from mtpforge.arithmetic import float8

    return float8.decode_blocks(parts["weight"], parts["weight_scale_inv"], quantization.block or blocks.USUAL)


def encode(rows: Tensor, quantization: Quantization, _matrix: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row parts of a band of float32 [rows, in]: compressed-tensors' block FP8 under DeepSeek's names."""
    weight, scale = blocks.encode(rows, quantization)
    return {"weight": weight, "weight_scale_inv": scale}


def packed_rows(parts: Mapping[str, Tensor], _shape: Shape, quantization: Quantization) -> PackedRows | None:
    """For the compiled decoder, which knows blocks of 128 columns, none of them cut."""
    import torch

    rows, columns = quantization.block or blocks.USUAL
    if columns != blocks.USUAL[1] or parts["weight"].shape[1] % columns:
        return None
    return PackedRows("e4m3", parts["weight"].view(torch.uint8), parts["weight_scale_inv"].float(), rows)


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: three bits of mantissa."""
    from mtpforge.arithmetic import limits

    return limits.e4m3(parts["weight_scale_inv"], quantization, shape)


def guesses(parts: Specs, _shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    dtype = blocks.scale_dtype(parts.get("weight_scale_inv", parts.get("weight_scale")))
    yield Quantization("fp8_block", 8, strategy="block", block=blocks.USUAL, scale_dtype=dtype)


FORMAT = Format(
    name="fp8_block",
    shown=lambda _: "FP8",
    takes=TAKES,
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    bound=bound,
    guesses=guesses,
    codes=Codes("weight", "F8_E4M3"),
    reader="fp8_block",
    reference="compressed-tensors FP8BlockDequantizer",
    matrix_parts=only_rows,
    encode=encode,
    packed_rows=packed_rows,
    same_bytes={"fp8_scaled": {"weight_scale_inv": "weight_scale"}},
)
