"""GPTQ and AutoRound: integers of 2 to 8 bits, stored input by input.

    qweight   I32              [in * b / 32, out]    dense stream along the columns of the weight, one for each row
    qzeros    I32              [in / g, out * b / 32]    dense stream along the rows
    scales    F16, BF16, F32   [in / g, out]    written as F16, as the libraries do, codes under what that holds
    g_idx     I32              [in]    the group of every column (desc_act); without it column // g; not written

    value = (code - zero_point) * float32(scale)      codes and zero points are 0 to 2^b - 1

Four ways to store codes and zero points, which no shape tells apart; the config does:

    gptq         zero points minus 1. Of 2, 4 and 8 bits 1 is taken from every field of a word at once, so that a zero
                 point of 0 borrows from the next field; of 3 bits from each field alone, modulo 8
    gptq_v2      zero points as they are
    gptq_p       the same, in bit planes: 32 values are words of 4, 2, 1 bits of each, lowest bits first; 3, 5 to 7 bits
    auto_round   as gptq_v2, in 2 to 8 bits; those of gptq_v2 are 2, 3, 4 and 8, for gptqmodel has the others in planes

    quant_method   says which
    gptq           checkpoint_format: gptq, also where it is absent; gptq_v2; gptq_p
    auto-round     packing_format: auto_round and auto_round:gptqmodel are auto_round; auto_round:auto_gptq is gptq;
                   auto_round:auto_awq is another format's

AutoRound's auto_gptq writes max(zero_point - 1, 0): where it was 0, in groups of positive numbers, the file is wrong by
a scale, for every reader; here it is written as GPTQ does. Bits and groups are each weight's own, by the shapes,
whatever `dynamic` or `extra_config` say.

Written are gptq and gptq_v2, which engines ask for: vLLM takes neither planes nor auto_round. It skips the zero points
of symmetric weights, so `bound` lets none pass but 2^(b-1).
Sources: gptqmodel 7.7.0 nn_modules/qlinear, utils/model.py; auto-round 0.16.1 export/export_to_autoround/export.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError
from mtpforge.formats.format import Codes, Finder, Format, PackedRows, PartRows, Specs, only_rows
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_SCALES: Final = ("F16", "BF16", "F32")
_ORDER: Final = "g_idx"
_KERNEL_COLUMNS: Final = 32  # the compiled loops take so many columns at a time
_TAKES: Final = {"strategy": ("group", "channel"), "symmetric": (True, False), "scale_dtype": _SCALES}


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of the ways: bits that it has, what is taken from zero points, bit planes or not, written or only read."""

    bits: tuple[int, ...]
    taken: int = 0
    is_planar: bool = False
    is_written: bool = False


_KINDS: Final = {
    "gptq": _Kind((4, 8, 2, 3), taken=1, is_written=True),
    "gptq_v2": _Kind((4, 8, 2, 3), is_written=True),
    "gptq_p": _Kind((3, 5, 6, 7), is_planar=True),
    "auto_round": _Kind((4, 8, 2, 3, 5, 6, 7)),
}
_AUTO_ROUND: Final = {"auto_round": "auto_round", "auto_round:gptqmodel": "auto_round", "auto_round:auto_gptq": "gptq"}


def _stated(block: Mapping[str, object]) -> str:
    """Which of the ways the config says; "" where it says none."""
    method = str(block.get("quant_method")).lower()
    if method == "gptq":
        return str(block.get("checkpoint_format") or "gptq").lower()
    return _AUTO_ROUND.get(str(block.get("packing_format")).lower(), "") if method == "auto-round" else ""


def _is_symmetric(block: Mapping[str, object]) -> bool:
    """Whether the config calls every weight symmetric. What decides are the zero points, which are always stored."""
    overrides = [of for key in ("dynamic", "extra_config") if isinstance(of := block.get(key), Mapping)]
    stated = [of["sym"] for each in overrides for of in each.values() if isinstance(of, Mapping) and "sym" in of]
    return all(value is True for value in (block.get("sym"), *stated))


def recognise(name: str, parts: Specs, shape: Shape, block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are GPTQ's and the config says that they are stored this way."""
    if _stated(block) != name or parts.get(_ORDER, _order(shape)) != _order(shape):
        return None
    stored = {suffix: spec for suffix, spec in parts.items() if suffix != _ORDER}
    found = _shaped(name, parts, shape, symmetric=_is_symmetric(block))
    return found if found and _holds(shape, found) and layout(shape, found) == stored else None


def _shaped(name: str, parts: Specs, shape: Shape, *, symmetric: bool) -> Quantization | None:
    """What the shapes of codes and scales say."""
    words, scale, columns = parts.get("qweight"), parts.get("scales"), shape[1]
    if words is None or scale is None or not words.shape or not scale.shape or not scale.shape[0] or not columns:
        return None
    bits, groups = words.shape[0] * 32 // columns, scale.shape[0]
    if bits not in _KINDS[name].bits or scale.dtype not in _SCALES:
        return None
    return _quantization(name, bits, columns // groups if groups > 1 else None, scale.dtype, symmetric=symmetric)


def _quantization(name: str, bits: int, size: int | None, dtype: str, *, symmetric: bool) -> Quantization:
    return Quantization(name, bits, "", "group" if size else "channel", size, symmetric=symmetric, scale_dtype=dtype)


def _order(shape: Shape) -> Spec:
    return Spec("I32", shape[1:])


def _holds(shape: Shape, quantization: Quantization) -> bool:
    """Whether rows and columns fill whole words, and columns whole groups."""
    whole = 32 if _KINDS[quantization.format].is_planar else 32 // math.gcd(32, quantization.bits)
    return not (shape[0] % whole or shape[1] % whole or shape[1] % (quantization.group_size or 1))


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as, `g_idx` left out: it may be there or not."""
    (rows, columns), bits = shape, quantization.bits
    if not _holds(shape, quantization):
        raise MtpforgeError(
            f"GPTQ holds no weight of {rows} rows and {columns} columns in {bits} bits, groups of"
            f" {quantization.group_size or columns}",
            why="words of codes and of zero points are full, and groups are not cut",
        )
    groups = columns // (quantization.group_size or columns)
    return {
        "qweight": Spec("I32", (columns * bits // 32, rows)),
        "qzeros": Spec("I32", (groups, rows * bits // 32)),
        "scales": Spec(quantization.scale_dtype or "F16", (groups, rows)),
    }


def rows_in_parts(_shape: Shape, quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """Rows lie along the second axis; of the zero points 32 are `bits` words."""
    packed = PartRows(axis=1, rows=32, entries=quantization.bits)
    return {"qweight": PartRows(axis=1), "qzeros": packed, "scales": PartRows(axis=1)}


def decode(parts: Mapping[str, Tensor], shape: Shape, quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    from mtpforge.arithmetic import affine, bits

    (rows, columns), width = shape, quantization.bits
    unpack = bits.unpack_planes if _KINDS[quantization.format].is_planar else bits.unpack
    codes = unpack(bits.compact(parts["qweight"].t()), width, columns)
    scale, zero_point = parts["scales"].t(), _zero_points(parts, rows, quantization)
    if _ORDER in parts:
        scale, zero_point = (affine.of_columns(each, parts[_ORDER]) for each in (scale, zero_point))
    return affine.dequantize(codes.view(rows, scale.shape[1], -1), scale, zero_point, width).flatten(1)


def packed_rows(parts: Mapping[str, Tensor], shape: Shape, quantization: Quantization) -> PackedRows | None:
    """For the compiled decoder of integers in groups of 32 n of neighbouring columns: of 4 and 8 bits as they lie."""
    import torch

    from mtpforge.arithmetic import bits

    scale, width = parts["scales"].t().float(), quantization.bits
    size = shape[1] // scale.shape[1]
    is_shuffled = _ORDER in parts and not torch.equal(parts[_ORDER], torch.arange(shape[1], dtype=torch.int32) // size)
    if is_shuffled or size % _KERNEL_COLUMNS:
        return None
    codes = bits.compact(parts["qweight"].t())
    if _KINDS[quantization.format].is_planar or width not in (4, 8):
        unpack = bits.unpack_planes if _KINDS[quantization.format].is_planar else bits.unpack
        codes = unpack(codes, width, shape[1])
    codes = codes.view(torch.uint8)
    return PackedRows("affine", codes, torch.cat([scale, _zero_points(parts, shape[0], quantization).float()], 1))


def _zero_points(parts: Mapping[str, Tensor], rows: int, quantization: Quantization) -> Tensor:
    """What is subtracted from the codes, uint8 [rows, groups]."""
    from mtpforge.arithmetic import bits

    kind, width = _KINDS[quantization.format], quantization.bits
    words = bits.add_to_fields(parts["qzeros"], width, kind.taken)
    return (bits.unpack_planes if kind.is_planar else bits.unpack)(words, width, rows).t()


def search(rows: Tensor, quantization: Quantization, _matrix: Mapping[str, Tensor], find: Finder) -> dict[str, Tensor]:
    """The same parts, codes and scales by a method's finder."""
    import torch

    from mtpforge.arithmetic import bits, scales

    width, dtype = quantization.bits, scales.torch_dtype(quantization.scale_dtype or _SCALES[0])
    groups = rows.view(rows.shape[0], -1, quantization.group_size or rows.shape[1])
    codes, scale, zero_point = find(groups, width, dtype, quantization.symmetric)
    if zero_point is None:
        zero_point = torch.full_like(scale, 2 ** (width - 1), dtype=torch.uint8)
    words = bits.pack(zero_point.t(), width)
    return {
        "qweight": bits.compact(bits.pack(codes.flatten(1), width).t()),
        "qzeros": bits.add_to_fields(words, width, -_KINDS[quantization.format].taken),
        "scales": bits.compact(scale.to(dtype).t()),
    }


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: half a step, and what rounding the scale clips.

    Nothing is near enough where a symmetric weight has another zero point than its engines take for granted.
    """
    from mtpforge.arithmetic import affine, limits

    scale = parts["scales"].t()
    if quantization.symmetric:
        other = _zero_points(parts, shape[0], quantization) != 2 ** (quantization.bits - 1)
        scale = scale.masked_fill(other, float("nan"))
    return limits.integers(affine.of_columns(scale, parts[_ORDER]) if _ORDER in parts else scale, quantization, shape)


def guesses(name: str, parts: Specs, shape: Shape, block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be; nothing where no `qweight` is."""
    if "qweight" not in parts or _stated(block) not in (name, ""):
        return
    if found := _shaped(name, parts, shape, symmetric=_is_symmetric(block)):
        yield found
    for bits in _KINDS[name].bits:
        for size in (128, 32, 64):
            yield _quantization(name, bits, size, _SCALES[0], symmetric=_is_symmetric(block))


FORMATS = tuple(
    Format(
        name=name,
        shown=lambda q: f"INT{q.bits}",
        takes={"bits": kind.bits, **_TAKES},
        recognise=partial(recognise, name),
        layout=layout,
        rows_in_parts=rows_in_parts,
        decode=decode,
        packed_rows=packed_rows,
        bound=bound,
        guesses=partial(guesses, name),
        codes=Codes("qweight", "I32", least=0, largest=-1, scale=lambda parts: parts["scales"].t()),
        reader="",
        reference="GPTQ, whose library gptqmodel needs another torch than this",
        matrix_parts=only_rows if kind.is_written else None,
        search=search if kind.is_written else None,
    )
    for name, kind in _KINDS.items()
)
