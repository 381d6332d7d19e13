"""Signed 4-bit integers, two in a byte, beside FP8 activations: the experts of SGLang's method `w4afp8`.

    weight             I8            [out, in / 2]        even column in the low half, two's complement
    weight_scale_inv   BF16 or F32   [out, in / 128]      read; written as BF16, in which SGLang computes
    input_scale        BF16          [1]                  of the activations; 1.0 where there is none

    value = code * float32(weight_scale_inv)        code: -8 .. 7

`_inv` is history: the stored number multiplies. Published conversions take the scale from largest / 8, by which the
largest positive weight is cut by a whole step; here it is as for all symmetric integers, largest / 7.5, and readers
multiply by what is stored. SGLang interleaves the scales by itself while loading.
Sources: SGLang 0.5.23 srt/layers/quantization/w4afp8.py, process_weights_after_loading, and the packing in its kernel's
own test (test_cutlass_w4a8_moe.py, pack_int4_values_to_int8).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError
from mtpforge.formats.format import (
    Codes,
    Finder,
    Format,
    InputScale,
    PackedRows,
    PartRows,
    RowPacking,
    Specs,
    only_rows,
)
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

GROUP: Final = 128  # W4AFp8Config has no other
_BITS: Final = 4
_SCALES: Final = ("BF16", "F32")
_SCALE: Final = "weight_scale_inv"
_INPUT: Final = InputScale("input_scale", 448.0)  # the largest number of E4M3
_SIGNS: Final = 0x88  # the sign bits of both codes: turned over, -8 .. 7 are 0 .. 15
TAKES: Final = {
    "bits": (_BITS,),
    "strategy": ("group",),
    "group_size": (GROUP,),
    "scale_dtype": _SCALES,
    "input_scale": ("none", "static"),
}


def recognise(parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are W4AFP8's."""
    scale = parts.get(_SCALE)
    if scale is None or scale.dtype not in _SCALES or shape[1] % GROUP:
        return None
    for kind in ("none", "static"):
        found = _quantization(scale.dtype, is_static=kind == "static")
        if layout(shape, found) == parts:
            return found
    return None


def _quantization(scale_dtype: str, *, is_static: bool) -> Quantization:
    return Quantization(
        "w4afp8",
        _BITS,
        strategy="group",
        group_size=GROUP,
        scale_dtype=scale_dtype,
        input_scale="static" if is_static else "none",
    )


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    rows, columns = shape
    if columns % GROUP:
        raise MtpforgeError(
            f"groups of {GROUP} columns do not divide {columns}",
            why="SGLang's W4AFP8 has groups of that size alone, and none that are cut",
            fix="name another scheme: `--scheme NAME`",
        )
    specs = {
        "weight": Spec("I8", (rows, columns // 2)),
        _SCALE: Spec(quantization.scale_dtype or "BF16", (rows, columns // GROUP)),
    }
    return specs | ({_INPUT.suffix: Spec("BF16", (1,))} if quantization.input_scale == "static" else {})


def rows_in_parts(_shape: Shape, _quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """A row of codes and of scales for every row."""
    return {"weight": PartRows(), _SCALE: PartRows()}


def decode(parts: Mapping[str, Tensor], shape: Shape, _quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    from mtpforge.arithmetic import affine, bits

    scale = parts[_SCALE]
    codes = bits.unpack(_words(parts["weight"]), _BITS, shape[1])
    return affine.dequantize(codes.view(shape[0], scale.shape[1], -1), scale, None, _BITS).flatten(1)


def _words(weight: Tensor) -> Tensor:
    """The codes unsigned, 8 added, as words of 32 bits."""
    import torch

    from mtpforge.arithmetic import bits

    return (bits.compact(weight).view(torch.uint8) ^ _SIGNS).view(torch.int32)


def search(rows: Tensor, quantization: Quantization, _matrix: Mapping[str, Tensor], find: Finder) -> dict[str, Tensor]:
    """The same parts, codes and scales by a method's finder."""
    from mtpforge.arithmetic import bits, scales

    dtype = scales.torch_dtype(quantization.scale_dtype or "BF16")
    codes, scale, _ = find(rows.view(rows.shape[0], -1, GROUP), _BITS, dtype, True)
    return {"weight": _signed(bits.pack(codes.flatten(1), _BITS)), _SCALE: scale.to(dtype)}


def _signed(words: Tensor) -> Tensor:
    """The way back from `_words`."""
    import torch

    return (words.view(torch.uint8) ^ _SIGNS).view(torch.int8)


def packed_rows(parts: Mapping[str, Tensor], _shape: Shape, _quantization: Quantization) -> PackedRows | None:
    """For the compiled decoder of unsigned codes."""
    import torch

    scale = parts[_SCALE].float()
    zero = torch.full_like(scale, 2 ** (_BITS - 1))
    return PackedRows("affine", _words(parts["weight"]).view(torch.uint8), torch.cat([scale, zero], 1))


def row_packing(columns: int, quantization: Quantization, _matrix: Mapping[str, Tensor]) -> RowPacking | None:
    """For the compiled encoder, under BF16 scales."""
    import torch

    if quantization.scale_dtype not in {None, "BF16"}:
        return None

    def parts(codes: Tensor, scales: Tensor, _zeros: Tensor) -> dict[str, Tensor]:
        return {"weight": _signed(codes), _SCALE: scales.view(torch.bfloat16)}

    return RowPacking("affine", (_BITS,), GROUP, (columns // 2, 2 * (columns // GROUP), 0), parts)


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: half a step, and what rounding the scale clips."""
    from mtpforge.arithmetic import limits

    return limits.integers(parts[_SCALE], quantization, shape)


def guesses(parts: Specs, _shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    if parts.get("weight", Spec("", ())).dtype == "I8":
        dtype = parts.get(_SCALE, Spec("", ())).dtype
        yield _quantization(dtype if dtype in _SCALES else _SCALES[0], is_static=_INPUT.suffix in parts)


FORMAT = Format(
    name="w4afp8",
    shown=lambda _: "INT4 for FP8 activations",
    takes=TAKES,
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    bound=bound,
    guesses=guesses,
    codes=Codes("weight", "I8", least=_SIGNS - 256, largest=0x77, scale=lambda parts: parts[_SCALE]),
    reader="",
    reference="none: SGLang's kernels alone read it, on a GPU",
    matrix_parts=only_rows,
    search=search,
    packed_rows=packed_rows,
    row_packing=row_packing,
    input_scale=_INPUT,
)
