"""NVFP4 as compressed-tensors stores it (`nvfp4-pack-quantized`).

    weight_packed         U8        [out, in / 2]    column 2j low nibble, 2j + 1 high nibble
    weight_scale          F8_E4M3   [out, in / 16]
    weight_global_scale   F32       [1]              448 * 6 / amax: divides
    input_global_scale    F32       [1]              static activations only: 448 * 6 / amax

    value = e2m1 * (float32(weight_scale) / weight_global_scale)

ModelOpt's numbers are the reciprocals, under other names: modelopt_nvfp4.py.
Source: compressed-tensors 0.20.0 compressors/nvfp4/base.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError
from mtpforge.formats.format import Codes, Format, InputScale, PackedRows, PartRows, RowPacking, Specs
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_INPUT: Final = "input_global_scale"
BLOCK: Final = 16
TAKES: Final = {
    "bits": (4,),
    "strategy": ("group",),
    "group_size": (BLOCK,),
    "scale_dtype": ("F8_E4M3",),
    "input_scale": ("none", "static"),
}


def recognise(parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are compressed-tensors NVFP4."""
    if shape[1] % BLOCK:
        return None
    found = quantization(static=_INPUT in parts)
    return found if layout(shape, found) == dict(parts) else None


def quantization(*, static: bool) -> Quantization:
    """The one quantization of this format, with stored activation scales or without."""
    return Quantization(
        "nvfp4",
        bits=4,
        strategy="group",
        group_size=BLOCK,
        scale_dtype="F8_E4M3",
        input_scale="static" if static else "none",
    )


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    rows, columns = shape
    refuse_ragged(columns)
    specs = {
        "weight_packed": Spec("U8", (rows, columns // 2)),
        "weight_scale": Spec("F8_E4M3", (rows, columns // BLOCK)),
        "weight_global_scale": Spec("F32", (1,)),
    }
    if quantization.input_scale == "static":
        specs[_INPUT] = Spec("F32", (1,))
    return specs


def refuse_ragged(columns: int) -> None:
    """Raise MtpforgeError where the columns are no multiple of 16: NVFP4 has no cut blocks."""
    if columns % BLOCK:
        raise MtpforgeError(
            f"NVFP4 needs a multiple of {BLOCK} columns, the weight has {columns}",
            why="every 16 columns share a scale",
            fix="name a scheme that leaves this module dense: `--scheme FILE`",
        )


def rows_in_parts(_shape: Shape, _quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """Codes and block scales have an entry a row; the global scales belong to the matrix."""
    return {"weight_packed": PartRows(), "weight_scale": PartRows()}


def decode(parts: Mapping[str, Tensor], _shape: Shape, _quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    from mtpforge.arithmetic import float4

    factors = parts["weight_scale"].float() / parts["weight_global_scale"]
    return float4.decode(parts["weight_packed"], factors, signed_zero=True)


def matrix_parts(_shape: Shape, _quantization: Quantization, amax: Tensor | None) -> dict[str, Tensor]:
    """`weight_global_scale` [1] for a largest magnitude, of all weights that share it."""
    from mtpforge.arithmetic import float4

    if amax is None:
        raise ValueError("the global scale needs the largest magnitude")
    return {"weight_global_scale": float4.global_scale(amax)}


def encode(rows: Tensor, _quantization: Quantization, matrix: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row parts of a band of float32 [rows, in]."""
    import torch

    from mtpforge.arithmetic import float4

    scale = float4.block_scales(rows, matrix["weight_global_scale"])
    return {
        "weight_packed": float4.encode(rows, scale / matrix["weight_global_scale"]),
        "weight_scale": scale.to(torch.float8_e4m3fn),
    }


def packed_rows(parts: Mapping[str, Tensor], _shape: Shape, _quantization: Quantization) -> PackedRows:
    """For the compiled decoder."""
    from mtpforge.arithmetic import float8

    factors = float8.to_float32(parts["weight_scale"]) / parts["weight_global_scale"]
    return PackedRows("e2m1_signed", parts["weight_packed"], factors)


def row_packing(columns: int, _quantization: Quantization, matrix: Mapping[str, Tensor]) -> RowPacking | None:
    """For the compiled encoder, which knows scales of usual size."""
    import torch

    from mtpforge.arithmetic import float4

    factor = float(matrix["weight_global_scale"])
    if not float4.is_usual(factor):
        return None

    def parts(codes: Tensor, scales: Tensor, _zeros: Tensor) -> dict[str, Tensor]:
        return {"weight_packed": codes, "weight_scale": scales.view(torch.float8_e4m3fn)}

    return RowPacking("e2m1", (factor,), BLOCK, (columns // 2, columns // BLOCK, 0), parts)


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: half of E2M1's widest gap."""
    from mtpforge.arithmetic import limits

    return limits.e2m1(parts["weight_scale"], 1 / parts["weight_global_scale"], quantization, shape)


def guesses(parts: Specs, _shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    yield quantization(static=_INPUT in parts)


FORMAT = Format(
    name="nvfp4",
    shown=lambda _: "NVFP4",
    takes=TAKES,
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    bound=bound,
    guesses=guesses,
    codes=Codes("weight_packed", "U8", least=0xFF, largest=0x77),
    reader="nvfp4",
    reference="compressed-tensors nvfp4-pack-quantized decompress",
    needs_amax=lambda _: True,
    matrix_parts=matrix_parts,
    encode=encode,
    packed_rows=packed_rows,
    row_packing=row_packing,
    input_scale=InputScale(_INPUT, 2688.0, reciprocal=True),
)
