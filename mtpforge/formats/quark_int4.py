"""Quark's integers of 4 bits, stored input by input.

    weight              I32              [in, out / 8]        a word holds 8 rows of the weight
    weight_zero_point   I32              [in / g, out / 8]    the same; all 0 of `int4`, which may leave it out
    weight_scale        BF16, F16, F32   [in / g, out]

    value = (code - zero_point) * float32(weight_scale)

Scales are written as BF16, which vLLM keeps them in, and zero points always, as Quark does: vLLM has places for them.
What the tensors do not say, the config does: `dtype` uint4 has codes of 0 to 15 and zero points, int4 codes of -8 to 7
in two's complement; `export.pack_method` is which row lies where in a word: `reorder` (quark_int4, as AWQ has it,
Quark's default), or `order` (quark_int4_in_order, the first row lowest).
Sources: amd-quark 0.13 torch/utils/pack.py, Pack_4_bits; torch/export/nn/modules/realquantizer.py; vllm 0.33.0
quantization/quark/utils.py, canonicalize_quark_packed_int4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError
from mtpforge.formats import awq
from mtpforge.formats.format import Codes, Finder, Format, PackedRows, PartRows, Specs, only_rows
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_BITS: Final = 4
_A_WORD: Final = 32 // _BITS
_KERNEL_COLUMNS: Final = 32  # the compiled loops take so many columns at a time
_SIGN: Final = 8  # xor with it turns a code in two's complement into the code plus 8
_SCALES: Final = ("BF16", "F16", "F32")
_ZERO: Final = "weight_zero_point"
_DTYPES: Final = {"int4": True, "uint4": False}  # -> whether it is symmetric
_SIZES: Final = (128, 32, 64)
_ENDS: Final = (-0x77777778, 0x77777777)  # a word of -8, one of 7


@dataclass(frozen=True, slots=True)
class _Kind:
    """places: the row of each nibble of a word, lowest bits first. packing: `pack_method` of the config."""

    name: str
    packing: str
    places: tuple[int, ...]


_KINDS: Final = (
    _Kind("quark_int4", "reorder", awq.PLACES),
    _Kind("quark_int4_in_order", "order", tuple(range(_A_WORD))),
)


def recognise(kind: _Kind, parts: Specs, shape: Shape, block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are Quark's packed integers, in this kind's order."""
    scale, symmetric = parts.get("weight_scale"), _said(kind, block)
    if scale is None or symmetric is None or scale.dtype not in _SCALES or not scale.shape or not scale.shape[0]:
        return None
    size, rest = divmod(shape[1], scale.shape[0])
    if rest or shape[0] % _A_WORD:
        return None
    found = Quantization(kind.name, _BITS, "", "group", size, symmetric=symmetric, scale_dtype=scale.dtype)
    expected = layout(shape, found)
    if symmetric and _ZERO not in parts:
        del expected[_ZERO]
    return found if expected == dict(parts) else None


def _said(kind: _Kind, block: Mapping[str, object]) -> bool | None:
    """Whether the config's integers of 4 bits are symmetric; None where it has none, two ways, or another order."""
    export = block.get("export")
    packing = export.get("pack_method", "reorder") if isinstance(export, Mapping) else "reorder"
    if block.get("quant_method") != "quark" or packing != kind.packing:
        return None
    said = {_DTYPES[dtype] for dtype, symmetric in _weights(block) if _DTYPES.get(dtype, not symmetric) == symmetric}
    return said.pop() if len(said) == 1 else None


def _weights(block: Mapping[str, object]) -> Iterator[tuple[str, bool]]:
    """`dtype` and `symmetric` of the weights of every config that the block holds."""
    of_layers = (block.get(key) for key in ("layer_quant_config", "layer_type_quant_config"))
    named = (config for layers in of_layers if isinstance(layers, Mapping) for config in layers.values())
    for config in (block.get("global_quant_config"), *named):
        weight = config.get("weight") if isinstance(config, Mapping) else None
        for one in weight if isinstance(weight, list) else [weight]:
            if isinstance(one, Mapping):
                yield str(one.get("dtype")), one.get("symmetric") is True


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    rows, columns = shape
    size = quantization.group_size or columns
    if columns % size or rows % _A_WORD:
        raise MtpforgeError(
            f"Quark's INT4 holds no weight of {rows} rows and {columns} columns in groups of {size}",
            why=f"a word holds {_A_WORD} rows, and groups are not cut",
        )
    return {
        "weight": Spec("I32", (columns, rows // _A_WORD)),
        _ZERO: Spec("I32", (columns // size, rows // _A_WORD)),
        "weight_scale": Spec(quantization.scale_dtype or _SCALES[0], (columns // size, rows)),
    }


def rows_in_parts(_shape: Shape, _quantization: Quantization, parts: Specs) -> dict[str, PartRows]:
    """Rows lie along the second axis of every part, eight to a word."""
    packed = PartRows(axis=1, rows=_A_WORD)
    lie = {"weight": packed, _ZERO: packed, "weight_scale": PartRows(axis=1)}
    return {suffix: lie[suffix] for suffix in parts}


def decode(kind: _Kind, parts: Mapping[str, Tensor], shape: Shape, quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    from mtpforge.arithmetic import affine

    codes, zero_point = _unsigned(kind, parts, quantization)
    scale = parts["weight_scale"].t()
    return affine.dequantize(codes.view(shape[0], scale.shape[1], -1), scale, zero_point, _BITS).flatten(1)


def _unsigned(kind: _Kind, parts: Mapping[str, Tensor], quantization: Quantization) -> tuple[Tensor, Tensor | None]:
    """Codes uint8 [rows, in] and zero points [rows, groups], both from 0; None where there are none, or all are 8."""
    from mtpforge.arithmetic import bits

    sign = _SIGN if quantization.symmetric else 0
    codes = bits.unpack_across(parts["weight"], kind.places) ^ sign
    return codes, bits.unpack_across(parts[_ZERO], kind.places) ^ sign if _ZERO in parts else None


def packed_rows(
    kind: _Kind, parts: Mapping[str, Tensor], shape: Shape, quantization: Quantization
) -> PackedRows | None:
    """For the compiled decoder of integers, a code a byte, in groups of 32 n."""
    import torch

    scale = parts["weight_scale"].t().float()
    if shape[1] // scale.shape[1] % _KERNEL_COLUMNS:
        return None
    codes, zero = _unsigned(kind, parts, quantization)
    of_groups = torch.full_like(scale, _SIGN) if zero is None else zero.float()
    return PackedRows("affine", codes, torch.cat([scale, of_groups], 1))


def search(
    kind: _Kind, rows: Tensor, quantization: Quantization, _matrix: Mapping[str, Tensor], find: Finder
) -> dict[str, Tensor]:
    """The same parts, codes and scales by a method's finder."""
    import torch

    from mtpforge.arithmetic import bits, scales

    dtype = scales.torch_dtype(quantization.scale_dtype or _SCALES[0])
    groups = rows.view(rows.shape[0], -1, quantization.group_size or rows.shape[1])
    codes, scale, zero_point = find(groups, _BITS, dtype, quantization.symmetric)
    sign = _SIGN if quantization.symmetric else 0
    zeros = torch.full_like(scale, _SIGN, dtype=torch.uint8) if zero_point is None else zero_point
    return {
        "weight": bits.pack_across((codes.flatten(1) ^ sign).t(), kind.places),
        _ZERO: bits.pack_across((zeros ^ sign).t(), kind.places),
        "weight_scale": bits.compact(scale.to(dtype).t()),
    }


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: half a step, and what rounding the scale clips.

    NaN under a zero point of symmetric weights that is not 0: vLLM reads none there.
    """
    from mtpforge.arithmetic import bits, limits

    scale = parts["weight_scale"].t()
    if quantization.symmetric and _ZERO in parts:
        zero_point = bits.unpack_across(parts[_ZERO], tuple(range(_A_WORD)))  # of all rows 0, in any order
        scale = scale.masked_fill(zero_point != 0, float("nan"))
    return limits.integers(scale, quantization, shape)


def guesses(kind: _Kind, parts: Specs, _shape: Shape, block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be; nothing where the config says another."""
    symmetric = _said(kind, block)
    if symmetric is not None and "weight_scale" in parts:
        dtype = parts["weight_scale"].dtype
        for size in _SIZES:
            scale = dtype if dtype in _SCALES else _SCALES[0]
            yield Quantization(kind.name, _BITS, "", "group", size, symmetric=symmetric, scale_dtype=scale)


def _format(kind: _Kind) -> Format:
    return Format(
        name=kind.name,
        shown=lambda q: f"INT{q.bits}",
        takes={"bits": (_BITS,), "strategy": ("group",), "symmetric": (True, False), "scale_dtype": _SCALES},
        recognise=partial(recognise, kind),
        layout=layout,
        rows_in_parts=rows_in_parts,
        decode=partial(decode, kind),
        packed_rows=partial(packed_rows, kind),
        bound=bound,
        guesses=partial(guesses, kind),
        codes=Codes("weight", "I32", 0, -1, _ENDS, lambda parts: parts["weight_scale"].t()),
        reader="",
        reference="amd-quark StaticScaledRealQuantizer, which needs onnx and a compiler to be imported",
        matrix_parts=only_rows,
        search=partial(search, kind),
    )


FORMATS: Final = tuple(_format(kind) for kind in _KINDS)
