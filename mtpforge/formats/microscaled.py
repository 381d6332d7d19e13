"""MXFP4 and MXFP8: OCP Microscaling 1.0, one power of two for 32 columns.

    mxfp4         weight_packed  U8        [out, in / 2]    column 2j low nibble, 2j + 1 high nibble
    quark_mxfp4   weight         U8        [out, in / 2]    the same bytes; ModelOpt's MXFP4 too
    mxfp8         weight         F8_E4M3   [out, in]        compressed-tensors and ModelOpt
    each          weight_scale   U8        [out, in / 32]   E8M0, an exponent; read as F8_E8M0 too, the same bytes

    value = code * 2 ^ (weight_scale - 127)

compressed-tensors keeps the sign of a negative that rounds to zero; Quark does not, and has no exponent below 1.
OpenAI's stacks, `*_blocks` and `*_scales`, are no module's parts, and no family here has them.
Sources: compressed-tensors 0.20.0 compressors/mxfp4/base.py, mxfp8/base.py; amd-quark 0.13 OCP_MXFP4Spec;
nvidia-modelopt 0.47.0 torch/quantization/qtensor/mxfp4_tensor.py, mxfp8_tensor.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError
from mtpforge.formats.format import Codes, Format, PackedRows, PartRows, RowPacking, Specs
from mtpforge.tensors import DTYPES, Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

GROUP: Final = 32
_SCALE: Final = "weight_scale"


@dataclass(frozen=True, slots=True)
class _Kind:
    """least: the smallest exponent that is written. keeps_sign: of a negative that rounds to zero."""

    name: str
    bits: int
    codes: Codes
    reference: str
    least: int = 0
    keeps_sign: bool = True

    @property
    def columns(self) -> int:
        """Columns in an element of the codes."""
        return DTYPES[self.codes.dtype].bits // self.bits

    @property
    def shown(self) -> str:
        return f"MXFP{self.bits}"

    @property
    def quantization(self) -> Quantization:
        return Quantization(self.name, self.bits, strategy="group", group_size=GROUP, scale_dtype="U8")


_COMPRESSED: Final = "compressed-tensors {} decompress"
_KINDS: Final = (
    _Kind("mxfp4", 4, Codes("weight_packed", "U8"), _COMPRESSED.format("mxfp4-pack-quantized")),
    _Kind("quark_mxfp4", 4, Codes("weight", "U8"), "nvidia-modelopt MXFP4QTensor.dequantize", 1, keeps_sign=False),
    _Kind("mxfp8", 8, Codes("weight", "F8_E4M3"), _COMPRESSED.format("mxfp8-quantized")),
)


def recognise(kind: _Kind, parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are of this kind."""
    if shape[1] % GROUP or _SCALE not in parts or parts[_SCALE].dtype not in ("U8", "F8_E8M0"):
        return None
    named = {**parts, _SCALE: Spec("U8", parts[_SCALE].shape)}
    return kind.quantization if layout(kind, shape, kind.quantization) == named else None


def layout(kind: _Kind, shape: Shape, _quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    rows, columns = shape
    if columns % GROUP:
        raise MtpforgeError(
            f"{kind.shown} needs a multiple of {GROUP} columns, the weight has {columns}",
            why=f"every {GROUP} columns share a scale",
            fix="name a scheme that leaves this module dense: `--scheme FILE`",
        )
    return {
        kind.codes.suffix: Spec(kind.codes.dtype, (rows, columns // kind.columns)),
        _SCALE: Spec("U8", (rows, columns // GROUP)),
    }


def rows_in_parts(kind: _Kind, _shape: Shape, _quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """An entry a row."""
    return {kind.codes.suffix: PartRows(), _SCALE: PartRows()}


def decode(kind: _Kind, parts: Mapping[str, Tensor], _shape: Shape, _quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    from mtpforge.arithmetic import float4, microscaling

    codes, scale = parts[kind.codes.suffix], parts[_SCALE]
    if kind.columns == 1:
        return microscaling.decode_e4m3(codes, scale)
    return float4.decode(codes, microscaling.factors(scale), signed_zero=True)


def encode(kind: _Kind, rows: Tensor, _quantization: Quantization, _matrix: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row parts of a band of float32 [rows, in]."""
    from mtpforge.arithmetic import float4, microscaling

    if kind.columns == 1:
        exponents = microscaling.exponents(rows, microscaling.E4M3)
        codes = microscaling.encode_e4m3(rows, exponents)
    else:
        exponents = microscaling.exponents(rows, microscaling.E2M1).clamp_(min=kind.least)
        codes = float4.encode(rows, microscaling.factors(exponents), signed_zero=kind.keeps_sign)
    return {kind.codes.suffix: codes, _SCALE: exponents}


def packed_rows(kind: _Kind, parts: Mapping[str, Tensor], _shape: Shape, _quantization: Quantization) -> PackedRows:
    """For the compiled decoders; that of FP4 has a factor for every 16 columns."""
    import torch

    from mtpforge.arithmetic import microscaling

    factors, codes = microscaling.factors(parts[_SCALE]), parts[kind.codes.suffix].view(torch.uint8)
    if kind.columns == 1:
        return PackedRows("e4m3_mx", codes, factors)
    return PackedRows("e2m1_signed", codes, factors.repeat_interleave(2, 1))


def row_packing(kind: _Kind, columns: int, _quantization: Quantization, _matrix: Mapping[str, Tensor]) -> RowPacking:
    """For the compiled encoders."""
    import torch

    dtype = getattr(torch, DTYPES[kind.codes.dtype].torch)

    def parts(codes: Tensor, scales: Tensor, _zeros: Tensor) -> dict[str, Tensor]:
        return {kind.codes.suffix: codes.view(dtype), _SCALE: scales}

    name = "mx_e2m1" if kind.columns > 1 else "mx_e4m3"
    numbers = (float(kind.least), float(kind.keeps_sign))
    return RowPacking(name, numbers, GROUP, (columns // kind.columns, columns // GROUP, 0), parts)


def bound(kind: _Kind, parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: half of E2M1's widest gap, three bits of mantissa of E4M3."""
    from mtpforge.arithmetic import limits, microscaling

    factors = microscaling.factors(parts[_SCALE])
    return (limits.mxfp4 if kind.columns > 1 else limits.e4m3)(factors, quantization, shape)


def guesses(kind: _Kind, _parts: Specs, _shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    yield kind.quantization


def _format(kind: _Kind) -> Format:
    return Format(
        name=kind.name,
        shown=lambda _: kind.shown,
        takes={
            "bits": (kind.bits,),
            "strategy": ("group",),
            "group_size": (GROUP,),
            "scale_dtype": ("U8",),
            "input_scale": ("none", "dynamic"),
        },
        recognise=partial(recognise, kind),
        layout=partial(layout, kind),
        rows_in_parts=partial(rows_in_parts, kind),
        decode=partial(decode, kind),
        bound=partial(bound, kind),
        guesses=partial(guesses, kind),
        codes=kind.codes,
        reader=kind.name,
        reference=kind.reference,
        matrix_parts=lambda *_: {},
        encode=partial(encode, kind),
        packed_rows=partial(packed_rows, kind),
        row_packing=partial(row_packing, kind),
        same_bytes={
            other.name: {kind.codes.suffix: other.codes.suffix}
            for other in _KINDS
            if other.name != kind.name and other.bits == kind.bits
        },
    )


MXFP4, QUARK_MXFP4, MXFP8 = (_format(kind) for kind in _KINDS)
