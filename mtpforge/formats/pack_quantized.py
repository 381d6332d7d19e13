"""Integers of 2 to 8 bits packed into 32-bit words: compressed-tensors `pack-quantized`.

    weight_packed       I32              [out, ceil(in * b / 32)]         dense stream along the columns
    weight_scale        BF16, F16, F32   [out, in / g]                    channel: [out, 1]; written as BF16
    weight_zero_point   I32              [ceil(out * b / 32), in / g]     asymmetric only: stream along the ROWS
    weight_shape        I64              [2]                              [out, in]

    value = (code - zero_point) * float32(weight_scale)      stored code and zero point = number + 2^(b-1)

Read only: the layout of 0.17.1 and earlier, where 3, 5, 6 and 7 bit values do not straddle words (told by the width,
and for 7 bits by the config, because 4 values a word is also what 8 bits take); `weight_g_idx` I32 [in], the group of
every column, of older act-order files.
Sources: compressed-tensors 0.20.0 compressors/pack_quantized; vLLM 0.33.0 reads the dense layout alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Literal

from mtpforge.errors import MtpforgeError
from mtpforge.formats.format import (
    BAND_ROWS,
    Codes,
    Finder,
    Format,
    PackedRows,
    PartRows,
    RowPacking,
    Specs,
    declared_weights,
)
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_SCALES: Final = ("BF16", "F16", "F32")
_BITS: Final = (4, 8, 2, 3, 5, 6, 7)  # most usual first: on a few columns several have the same width
_ZERO: Final = "weight_zero_point"
_KERNEL_COLUMNS: Final = 32  # the compiled loops take so many columns at a time
_ORDER: Final = "weight_g_idx"
TAKES: Final = {
    "bits": _BITS,
    "strategy": ("group", "channel"),
    "symmetric": (True, False),
    "scale_dtype": _SCALES,
    "input_scale": ("none", "dynamic"),
}


def recognise(parts: Specs, shape: Shape, block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are packed integers.

    Old zero points of 3, 5 or 6 bits are taken only where one band holds them all: 10, 6 or 5 rows share a word there,
    and bands of 128 rows would cut it.
    """
    scale, order = parts.get("weight_scale"), Spec("I32", shape[1:])
    if scale is None or scale.dtype not in _SCALES or parts.get(_ORDER, order) != order:
        return None
    stored = {suffix: spec for suffix, spec in parts.items() if suffix != _ORDER}
    for found in _candidates(scale, shape, block, symmetric=_ZERO not in parts):
        if layout(shape, found) == stored:
            return found
        if _old_layout(shape, found) == stored:
            return found if _in_one_band(shape, found) else None
    return None


def _candidates(scale: Spec, shape: Shape, block: Mapping[str, object], *, symmetric: bool) -> Iterator[Quantization]:
    """What a scale of this shape leaves open, likelier ones first: the bits, those that the config names foremost."""
    columns = shape[1]
    if len(scale.shape) != len(shape) or not scale.shape[1] or columns % scale.shape[1]:
        return
    declared = list(declared_weights(block))
    named = [bits for w in declared if isinstance(bits := w.get("num_bits"), int) and bits in _BITS]
    sizes = [w.get("group_size") for w in declared]
    by_row = -1 in sizes or None in sizes or columns not in sizes  # one scale a row is also one group of all columns
    grouped = scale.shape[1] > 1 or not by_row
    strategy: Literal["group", "channel"] = "group" if grouped else "channel"
    for bits in (*named, *_BITS):
        yield Quantization(
            "pack_quantized",
            bits,
            strategy=strategy,
            group_size=columns // scale.shape[1] if grouped else None,
            symmetric=symmetric,
            scale_dtype=scale.dtype,
        )


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as, in the dense layout."""
    return _layout(shape, quantization, _words)


def _old_layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    return _layout(shape, quantization, _old_words)


def _layout(shape: Shape, quantization: Quantization, words: Callable[[int, int], int]) -> dict[str, Spec]:
    rows, columns = shape
    size = quantization.group_size or columns
    if columns % size:
        raise MtpforgeError(
            f"groups of {size} columns do not divide {columns}",
            why="compressed-tensors and vLLM have no cut groups",
            fix="name a scheme whose group size divides it: `--scheme FILE`",
        )
    specs = {
        "weight_packed": Spec("I32", (rows, words(columns, quantization.bits))),
        "weight_scale": Spec(quantization.scale_dtype or "BF16", (rows, columns // size)),
        "weight_shape": Spec("I64", (2,)),
    }
    if not quantization.symmetric:
        specs[_ZERO] = Spec("I32", (words(rows, quantization.bits), columns // size))
    return specs


def _words(count: int, bits: int) -> int:
    return -(-count * bits // 32)


def _old_words(count: int, bits: int) -> int:
    return -(-count // (32 // bits))


def _in_one_band(shape: Shape, quantization: Quantization) -> bool:
    return quantization.symmetric or shape[0] <= BAND_ROWS or BAND_ROWS % (32 // quantization.bits) == 0


def rows_in_parts(shape: Shape, quantization: Quantization, parts: Specs) -> dict[str, PartRows]:
    """Zero points are packed along the rows: 32 of them are `bits` words, in old files 32 // `bits` are one."""
    lie, width = {"weight_packed": PartRows(), "weight_scale": PartRows()}, quantization.bits
    if not quantization.symmetric:
        is_dense = parts[_ZERO].shape[0] == _words(shape[0], width)
        lie[_ZERO] = PartRows(rows=32, entries=width) if is_dense else PartRows(rows=32 // width)
    return lie


def decode(parts: Mapping[str, Tensor], shape: Shape, quantization: Quantization) -> Tensor:
    """Float32 [rows, in], of either layout."""
    from mtpforge.arithmetic import affine, bits

    rows, columns = shape
    packed, scale, width = parts["weight_packed"], parts["weight_scale"], quantization.bits
    unpack = bits.unpack if packed.shape[1] == _words(columns, width) else bits.unpack_legacy
    zero_point = None
    if not quantization.symmetric:
        # zero points are packed along the rows: unpacked as columns of the transpose
        zero_point = unpack(bits.compact(parts[_ZERO].t()), width, rows).t()
    codes = unpack(packed, width, columns)
    if _ORDER in parts:
        scale = affine.of_columns(scale, parts[_ORDER])
        zero_point = None if zero_point is None else affine.of_columns(zero_point, parts[_ORDER])
    return affine.dequantize(codes.view(rows, scale.shape[1], -1), scale, zero_point, width).flatten(1)


def matrix_parts(shape: Shape, _quantization: Quantization, _amax: Tensor | None) -> dict[str, Tensor]:
    """`weight_shape`: [out, in] of the whole weight; on the CPU."""
    import torch

    return {"weight_shape": torch.tensor(shape, dtype=torch.int64)}


def search(rows: Tensor, quantization: Quantization, _matrix: Mapping[str, Tensor], find: Finder) -> dict[str, Tensor]:
    """The same parts, codes and scales by a method's finder."""
    from mtpforge.arithmetic import bits, scales

    dtype = scales.torch_dtype(quantization.scale_dtype or "BF16")
    groups = rows.view(rows.shape[0], -1, quantization.group_size or rows.shape[1])
    codes, scale, zero_point = find(groups, quantization.bits, dtype, quantization.symmetric)
    parts = {"weight_packed": bits.pack(codes.flatten(1), quantization.bits), "weight_scale": scale.to(dtype)}
    if zero_point is not None:
        parts[_ZERO] = bits.compact(bits.pack(zero_point.t(), quantization.bits).t())
    return parts


def packed_rows(parts: Mapping[str, Tensor], shape: Shape, quantization: Quantization) -> PackedRows | None:
    """For the compiled decoder, which knows 4 and 8 bits in groups of 32 n, densely packed."""
    import torch

    from mtpforge.arithmetic import bits

    width, scale, packed = quantization.bits, parts["weight_scale"], parts["weight_packed"]
    is_odd = width not in {4, 8} or _ORDER in parts or packed.shape[1] * 32 != shape[1] * width
    if is_odd or shape[1] // scale.shape[1] % _KERNEL_COLUMNS:
        return None
    if quantization.symmetric:
        zero = torch.full_like(scale, 2 ** (width - 1), dtype=torch.float32)
    else:
        zero = bits.unpack(bits.compact(parts[_ZERO].t()), width, shape[0]).t().float()
    return PackedRows("affine", packed.contiguous().view(torch.uint8), torch.cat([scale.float(), zero], 1))


def row_packing(columns: int, quantization: Quantization, _matrix: Mapping[str, Tensor]) -> RowPacking | None:
    """For the compiled encoder, which knows 4 and 8 bits in groups of 32 n under BF16 scales."""
    import torch

    from mtpforge.arithmetic import bits

    size = quantization.group_size or columns
    if quantization.bits not in {4, 8} or quantization.scale_dtype not in {None, "BF16"} or size % _KERNEL_COLUMNS:
        return None

    def parts(codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
        packed = {"weight_packed": codes.view(torch.int32), "weight_scale": scales.view(torch.bfloat16)}
        if quantization.symmetric:
            return packed
        return packed | {_ZERO: bits.compact(bits.pack(zeros.t(), quantization.bits).t())}

    groups = columns // size
    widths = (columns * quantization.bits // 8, 2 * groups, 0 if quantization.symmetric else groups)
    return RowPacking("affine", (quantization.bits,), size, widths, parts)


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: half a step, and what rounding the scale clips."""
    from mtpforge.arithmetic import limits

    return limits.integers(parts["weight_scale"], quantization, shape)


def guesses(parts: Specs, shape: Shape, block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    scale, declared = parts.get("weight_scale", Spec("", ())), list(declared_weights(block))
    dtype = scale.dtype if scale.dtype in _SCALES else _SCALES[0]
    named = [bits for w in declared if isinstance(bits := w.get("num_bits"), int) and bits in _BITS]
    sizes = [size for w in declared if isinstance(size := w.get("group_size"), int) and size > 0]
    if len(scale.shape) > 1 and scale.shape[1] and shape[1] % scale.shape[1] == 0:
        sizes.insert(0, shape[1] // scale.shape[1])
    also = (False,) if any(w.get("symmetric") is False for w in declared) else ()
    for bits in (*named, *_BITS):
        for size in (*sizes, None, 32, 128):
            for symmetric in (_ZERO not in parts, *also):
                strategy: Literal["group", "channel"] = "group" if size else "channel"
                yield Quantization("pack_quantized", bits, "", strategy, size, symmetric=symmetric, scale_dtype=dtype)


def unread(parts: Specs, shape: Shape, quantization: Quantization) -> str:
    """What compressed-tensors 0.20.0 no longer reads of its own earlier files."""
    if _ORDER in parts:
        return "act-order, which compressed-tensors no longer reads"
    if parts["weight_packed"].shape[1] != _words(shape[1], quantization.bits):
        return "packed as compressed-tensors 0.17.1 and earlier did, which it no longer reads"
    return ""


FORMAT = Format(
    name="pack_quantized",
    shown=lambda q: f"INT{q.bits}",
    takes=TAKES,
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    bound=bound,
    guesses=guesses,
    codes=Codes("weight_packed", "I32", least=0, largest=-1),
    reader="pack_quantized",
    reference="compressed-tensors pack-quantized decompress",
    unread=unread,
    matrix_parts=matrix_parts,
    search=search,
    packed_rows=packed_rows,
    row_packing=row_packing,
    implied=frozenset({"weight_shape"}),
)
