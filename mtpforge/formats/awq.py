"""AWQ `gemm`: integers of 4 bits, stored input by input.

    qweight   I32         [in, out / 8]        a word holds 8 rows of the weight
    qzeros    I32         [in / g, out / 8]    the same
    scales    F16, BF16   [in / g, out]         written as F16, as AutoAWQ does, and the codes under what that holds

    bits of a word    0..3   4..7   8..11   12..15   16..19   20..23   24..27   28..31
    row of the 8        0      2       4        6        1        3        5        7

    value = (code - zero_point) * float32(scale)      codes and zero points are 0 to 15 as they stand

Sources: autoawq 0.2.9 modules/linear/gemm.py, utils/packing_utils.py; compressed-tensors 0.20.0 AutoAWQConverter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError
from mtpforge.formats.format import Codes, Finder, Format, PackedRows, PartRows, Specs, only_rows
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_BITS: Final = 4
_A_WORD: Final = 32 // _BITS
_KERNEL_COLUMNS: Final = 32  # the compiled loops take so many columns at a time
PLACES: Final = (0, 2, 4, 6, 1, 3, 5, 7)  # the row of each nibble of a word, lowest bits first
_SCALES: Final = ("F16", "BF16")


def recognise(parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are AWQ's for its `gemm` kernels."""
    scale, (rows, columns) = parts.get("scales"), shape
    if scale is None or scale.dtype not in _SCALES or not scale.shape or not scale.shape[0] or rows % _A_WORD:
        return None
    size, rest = divmod(columns, scale.shape[0])
    found = Quantization("awq", _BITS, "", "group", size, symmetric=False, scale_dtype=scale.dtype)
    return None if rest or layout(shape, found) != dict(parts) else found


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    rows, columns = shape
    size = quantization.group_size or columns
    if columns % size or rows % _A_WORD:
        raise MtpforgeError(
            f"AWQ holds no weight of {rows} rows and {columns} columns in groups of {size}",
            why=f"a word holds {_A_WORD} rows, and groups are not cut",
        )
    return {
        "qweight": Spec("I32", (columns, rows // _A_WORD)),
        "qzeros": Spec("I32", (columns // size, rows // _A_WORD)),
        "scales": Spec(quantization.scale_dtype or "F16", (columns // size, rows)),
    }


def rows_in_parts(_shape: Shape, _quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """Rows lie along the second axis of every part, eight to a word."""
    packed = PartRows(axis=1, rows=_A_WORD)
    return {"qweight": packed, "qzeros": packed, "scales": PartRows(axis=1)}


def decode(parts: Mapping[str, Tensor], shape: Shape, _quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    from mtpforge.arithmetic import affine, bits

    scale, zero_point = parts["scales"].t(), bits.unpack_across(parts["qzeros"], PLACES)
    codes = bits.unpack_across(parts["qweight"], PLACES).view(shape[0], scale.shape[1], -1)
    return affine.dequantize(codes, scale, zero_point, _BITS).flatten(1)


def packed_rows(parts: Mapping[str, Tensor], shape: Shape, _quantization: Quantization) -> PackedRows | None:
    """For the compiled decoder of integers, a code a byte, in groups of 32 n."""
    import torch

    from mtpforge.arithmetic import bits

    scale = parts["scales"].t().float()
    if shape[1] // scale.shape[1] % _KERNEL_COLUMNS:
        return None
    zero = bits.unpack_across(parts["qzeros"], PLACES).float()
    return PackedRows("affine", bits.unpack_across(parts["qweight"], PLACES), torch.cat([scale, zero], 1))


def search(rows: Tensor, quantization: Quantization, _matrix: Mapping[str, Tensor], find: Finder) -> dict[str, Tensor]:
    """The same parts, codes and scales by a method's finder."""
    from mtpforge.arithmetic import bits, scales

    dtype = scales.torch_dtype(quantization.scale_dtype or _SCALES[0])
    groups = rows.view(rows.shape[0], -1, quantization.group_size or rows.shape[1])
    codes, scale, zero_point = find(groups, _BITS, dtype, False)
    if zero_point is None:
        raise AssertionError("AWQ stores zero points")
    return {
        "qweight": bits.pack_across(codes.flatten(1).t(), PLACES),
        "qzeros": bits.pack_across(zero_point.t(), PLACES),
        "scales": bits.compact(scale.to(dtype).t()),
    }


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: half a step, and what rounding the scale clips."""
    from mtpforge.arithmetic import limits

    return limits.integers(parts["scales"].t(), quantization, shape)


def guesses(parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be; nothing where no `qweight` is."""
    if "qweight" not in parts:
        return
    scale = parts.get("scales", Spec("", ()))
    dtype = scale.dtype if scale.dtype in _SCALES else _SCALES[0]
    sizes = [128, 32, 64]
    if scale.shape and scale.shape[0] and shape[1] % scale.shape[0] == 0:
        sizes.insert(0, shape[1] // scale.shape[0])
    for size in sizes:
        yield Quantization("awq", _BITS, "", "group", size, symmetric=False, scale_dtype=dtype)


FORMAT = Format(
    name="awq",
    shown=lambda q: f"INT{q.bits}",
    takes={"bits": (_BITS,), "strategy": ("group",), "symmetric": (False,), "scale_dtype": _SCALES},
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    packed_rows=packed_rows,
    bound=bound,
    guesses=guesses,
    codes=Codes("qweight", "I32", least=0, largest=-1, scale=lambda parts: parts["scales"].t()),
    reader="awq",
    reference="compressed-tensors AutoAWQConverter, then pack-quantized decompress",
    matrix_parts=only_rows,
    search=search,
)
