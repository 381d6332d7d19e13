"""Integers of 8 bits with one scale a row: compressed-tensors `int-quantized`, known as W8A8.

    weight              I8                [out, in]
    weight_scale        BF16, F16, F32    [out, 1]      written as BF16
    weight_zero_point   I8                [out, 1]      asymmetric only

    value = (weight - weight_zero_point) * float32(weight_scale)

A scale of shape [out] is refused: the library would apply it to the columns of a square weight.
Source: compressed-tensors 0.20.0 compressors/naive_quantized/base.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.formats.format import Codes, Finder, Format, PartRows, RowPacking, Specs
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_SCALES: Final = ("BF16", "F16", "F32")
_ZERO: Final = "weight_zero_point"
_BITS: Final = 8
TAKES: Final = {
    "bits": (_BITS,),
    "strategy": ("channel",),
    "symmetric": (True, False),
    "scale_dtype": _SCALES,
    "input_scale": ("none", "dynamic"),
}
_KERNEL_COLUMNS: Final = 32  # the compiled loops take so many columns at a time
_SIGN: Final = 128  # xor with it turns a code plus 2^7 into the code in two's complement, and back


def recognise(parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are integers of 8 bits with a scale a row."""
    scale = parts.get("weight_scale")
    if scale is None or scale.dtype not in _SCALES:
        return None
    found = Quantization(
        "int_quantized", bits=_BITS, strategy="channel", symmetric=_ZERO not in parts, scale_dtype=scale.dtype
    )
    return found if layout(shape, found) == dict(parts) else None


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    specs = {"weight": Spec("I8", shape), "weight_scale": Spec(quantization.scale_dtype or "BF16", (shape[0], 1))}
    if not quantization.symmetric:
        specs[_ZERO] = Spec("I8", (shape[0], 1))
    return specs


def rows_in_parts(_shape: Shape, quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """Everything has an entry a row."""
    return dict.fromkeys(["weight", "weight_scale", *([] if quantization.symmetric else [_ZERO])], PartRows())


def decode(parts: Mapping[str, Tensor], _shape: Shape, quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    from mtpforge.arithmetic import affine

    zero_point = None if quantization.symmetric else _unsigned(parts[_ZERO])
    codes = _unsigned(parts["weight"]).unsqueeze(1)
    return affine.dequantize(codes, parts["weight_scale"], zero_point, _BITS).squeeze(1)


def _unsigned(codes: Tensor) -> Tensor:
    import torch

    return codes.view(torch.uint8) ^ _SIGN


def _signed(codes: Tensor) -> Tensor:
    import torch

    return (codes ^ _SIGN).view(torch.int8)


def matrix_parts(_shape: Shape, _quantization: Quantization, _amax: Tensor | None) -> dict[str, Tensor]:
    """None: every row has a scale of its own."""
    return {}


def encode(rows: Tensor, quantization: Quantization, matrix: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row parts of a band of float32 [rows, in]."""
    from mtpforge.arithmetic import searching

    return search(rows, quantization, matrix, searching.nearest(searching.whole_range))


def search(rows: Tensor, quantization: Quantization, _matrix: Mapping[str, Tensor], find: Finder) -> dict[str, Tensor]:
    """The same parts, codes and scales by a method's finder."""
    from mtpforge.arithmetic import scales

    dtype = scales.torch_dtype(quantization.scale_dtype or "BF16")
    groups = rows.unsqueeze(1)
    codes, scale, zero_point = find(groups, _BITS, dtype, quantization.symmetric)
    parts = {"weight": _signed(codes.squeeze(1)), "weight_scale": scale.to(dtype)}
    if zero_point is not None:
        parts[_ZERO] = _signed(zero_point)
    return parts


def row_packing(columns: int, quantization: Quantization, _matrix: Mapping[str, Tensor]) -> RowPacking | None:
    """For the compiled encoder, which knows rows of 32 n columns under BF16 scales."""
    import torch

    if quantization.scale_dtype not in {None, "", "BF16"} or columns % _KERNEL_COLUMNS:
        return None

    def parts(codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
        made = {"weight": _signed(codes), "weight_scale": scales.view(torch.bfloat16)}
        return made if quantization.symmetric else made | {_ZERO: _signed(zeros)}

    widths = (columns, 2, 0 if quantization.symmetric else 1)
    return RowPacking("affine", (_BITS,), columns, widths, parts)


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: half a step, and what rounding the scale clips."""
    from mtpforge.arithmetic import limits

    return limits.integers(parts["weight_scale"], quantization, shape)


def guesses(parts: Specs, _shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    scale = parts.get("weight_scale")
    dtype = scale.dtype if scale is not None and scale.dtype in _SCALES else _SCALES[0]
    yield Quantization("int_quantized", _BITS, strategy="channel", symmetric=_ZERO not in parts, scale_dtype=dtype)


FORMAT = Format(
    name="int_quantized",
    shown=lambda q: f"INT{q.bits}",
    takes=TAKES,
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    bound=bound,
    guesses=guesses,
    codes=Codes("weight", "I8", least=-128, largest=127),
    reader="int_quantized",
    reference="compressed-tensors int-quantized decompress",
    matrix_parts=matrix_parts,
    encode=encode,
    search=search,
    row_packing=row_packing,
)
