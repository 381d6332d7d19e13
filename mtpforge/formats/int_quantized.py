"""Integers of 8 bits with one scale a row: compressed-tensors `int-quantized`, known as W8A8, and Quark's.

                                          int_quantized   quark_int8
    weight              I8                [out, in]       [out, in]
    weight_scale        BF16, F16, F32    [out, 1]        [out]        written as BF16, Quark's as F32
    weight_zero_point   I8                [out, 1]        [out]        asymmetric only, which Quark's is not written as

    value = (weight - weight_zero_point) * float32(weight_scale)

Where the config does not say Quark, a scale of shape [out] is refused: compressed-tensors would apply it to the columns
of a square weight.
Sources: compressed-tensors 0.20.0 compressors/naive_quantized/base.py; vllm 0.33.0 quantization/quark/schemes/
quark_w8a8_int8.py, "Quark stores per-channel weight_scale as 1D", and quark_moe.py, QuarkW8A8Int8MoEMethod.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from mtpforge.formats.format import Codes, Finder, Format, PartRows, RowPacking, Specs, only_rows
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_SCALES: Final = ("BF16", "F16", "F32")
_ZERO: Final = "weight_zero_point"
_BITS: Final = 8
_KERNEL_COLUMNS: Final = 32  # the compiled loops take so many columns at a time
_SIGN: Final = 128  # xor with it turns a code plus 2^7 into the code in two's complement, and back


@dataclass(frozen=True, slots=True)
class _Kind:
    """of_row: what follows the rows in the shape of scales. method: `quant_method` that alone stores it so, or ""."""

    name: str
    of_row: Shape
    method: str
    symmetric: tuple[bool, ...]
    reader: str
    reference: str


_KINDS: Final = (
    _Kind("int_quantized", (1,), "", (True, False), "int_quantized", "compressed-tensors int-quantized decompress"),
    _Kind("quark_int8", (), "quark", (True,), "", "no decoder of Quark's own runs beside ours"),
)


def recognise(kind: _Kind, parts: Specs, shape: Shape, block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are integers of 8 bits with a scale a row."""
    scale = parts.get("weight_scale")
    if scale is None or scale.dtype not in _SCALES or kind.method not in {"", block.get("quant_method")}:
        return None
    found = Quantization(
        kind.name, bits=_BITS, strategy="channel", symmetric=_ZERO not in parts, scale_dtype=scale.dtype
    )
    return found if layout(kind, shape, found) == dict(parts) else None


def layout(kind: _Kind, shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    rows = (shape[0], *kind.of_row)
    specs = {"weight": Spec("I8", shape), "weight_scale": Spec(quantization.scale_dtype or "BF16", rows)}
    if not quantization.symmetric:
        specs[_ZERO] = Spec("I8", rows)
    return specs


def rows_in_parts(_shape: Shape, quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """Everything has an entry a row."""
    return dict.fromkeys(["weight", "weight_scale", *([] if quantization.symmetric else [_ZERO])], PartRows())


def decode(parts: Mapping[str, Tensor], _shape: Shape, quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    from mtpforge.arithmetic import affine

    zero_point = None if quantization.symmetric else _unsigned(parts[_ZERO]).view(-1, 1)
    codes = _unsigned(parts["weight"]).unsqueeze(1)
    return affine.dequantize(codes, parts["weight_scale"].view(-1, 1), zero_point, _BITS).squeeze(1)


def _unsigned(codes: Tensor) -> Tensor:
    import torch

    return codes.view(torch.uint8) ^ _SIGN


def _signed(codes: Tensor) -> Tensor:
    import torch

    return (codes ^ _SIGN).view(torch.int8)


def search(
    kind: _Kind, rows: Tensor, quantization: Quantization, _matrix: Mapping[str, Tensor], find: Finder
) -> dict[str, Tensor]:
    """The same parts, codes and scales by a method's finder."""
    from mtpforge.arithmetic import scales

    dtype = scales.torch_dtype(quantization.scale_dtype or "BF16")
    groups = rows.unsqueeze(1)
    codes, scale, zero_point = find(groups, _BITS, dtype, quantization.symmetric)
    parts = {"weight": _signed(codes.squeeze(1)), "weight_scale": scale.to(dtype).view(-1, *kind.of_row)}
    if zero_point is not None:
        parts[_ZERO] = _signed(zero_point).view(-1, *kind.of_row)
    return parts


def row_packing(
    kind: _Kind, columns: int, quantization: Quantization, _matrix: Mapping[str, Tensor]
) -> RowPacking | None:
    """For the compiled encoder, which knows rows of 32 n columns under BF16 scales."""
    import torch

    if quantization.scale_dtype not in {None, "", "BF16"} or columns % _KERNEL_COLUMNS:
        return None

    def parts(codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
        rows = (-1, *kind.of_row)
        made = {"weight": _signed(codes), "weight_scale": scales.view(torch.bfloat16).view(rows)}
        return made if quantization.symmetric else made | {_ZERO: _signed(zeros).view(rows)}

    widths = (columns, 2, 0 if quantization.symmetric else 1)
    return RowPacking("affine", (_BITS,), columns, widths, parts)


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: half a step, and what rounding the scale clips."""
    from mtpforge.arithmetic import limits

    return limits.integers(parts["weight_scale"], quantization, shape)


def guesses(kind: _Kind, parts: Specs, _shape: Shape, block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    if kind.method not in {"", block.get("quant_method")}:
        return
    scale = parts.get("weight_scale")
    dtype = scale.dtype if scale is not None and scale.dtype in _SCALES else _SCALES[0]
    yield Quantization(kind.name, _BITS, strategy="channel", symmetric=_ZERO not in parts, scale_dtype=dtype)


def _format(kind: _Kind) -> Format:
    return Format(
        name=kind.name,
        shown=lambda q: f"INT{q.bits}",
        takes={
            "bits": (_BITS,),
            "strategy": ("channel",),
            "symmetric": kind.symmetric,
            "scale_dtype": _SCALES,
            "input_scale": ("none", "dynamic"),
        },
        recognise=partial(recognise, kind),
        layout=partial(layout, kind),
        rows_in_parts=rows_in_parts,
        decode=decode,
        bound=bound,
        guesses=partial(guesses, kind),
        codes=Codes("weight", "I8", least=-128, largest=127, scale=lambda parts: parts["weight_scale"].view(-1, 1)),
        reader=kind.reader,
        reference=kind.reference,
        matrix_parts=only_rows,
        search=partial(search, kind),
        row_packing=partial(row_packing, kind),
    )


FORMAT, QUARK = (_format(kind) for kind in _KINDS)
