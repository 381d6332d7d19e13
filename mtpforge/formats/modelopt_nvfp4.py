"""NVFP4 as ModelOpt stores it.

    weight           U8        [out, in / 2]    column 2j low nibble, 2j + 1 high nibble
    weight_scale     F8_E4M3   [out, in / 16]
    weight_scale_2   F32       []               amax / (6 * 448): multiplies
    input_scale      F32       []               static activations only: amax / (6 * 448)

W4A8_NVFP4_FP8 has the same parts and values; of its FP8 activations `input_scale` is amax / 448.

    value = e2m1 * (float32(weight_scale) * weight_scale_2)

Quark stores the same, and the scale of its activations as `input_scale_2`: read, and left behind (vllm 0.33.0
quantization/quark/schemes/quark_nvfp4.py).
compressed-tensors' numbers are the reciprocals, under other names: nvfp4.py.
Source: nvidia-modelopt 0.47.0 torch/quantization/qtensor/nvfp4_tensor.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.formats import nvfp4
from mtpforge.formats.format import Codes, Format, InputScale, PackedRows, PartRows, RowPacking, Specs
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_INPUT: Final = "input_scale"
_INPUT_OF_QUARK: Final = "input_scale_2"
TAKES: Final = nvfp4.TAKES


def recognise(parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are ModelOpt NVFP4."""
    if shape[1] % nvfp4.BLOCK:
        return None
    found = quantization(static=_INPUT in parts)
    held = {suffix: spec for suffix, spec in parts.items() if suffix != _INPUT_OF_QUARK}
    return found if layout(shape, found) == held else None


def quantization(*, static: bool) -> Quantization:
    """The one quantization of this format, with stored activation scales or without."""
    return Quantization(
        "modelopt_nvfp4",
        bits=4,
        strategy="group",
        group_size=nvfp4.BLOCK,
        scale_dtype="F8_E4M3",
        input_scale="static" if static else "none",
    )


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    rows, columns = shape
    nvfp4.refuse_ragged(columns)
    specs = {
        "weight": Spec("U8", (rows, columns // 2)),
        "weight_scale": Spec("F8_E4M3", (rows, columns // nvfp4.BLOCK)),
        "weight_scale_2": Spec("F32", ()),
    }
    if quantization.input_scale == "static":
        specs[_INPUT] = Spec("F32", ())
    return specs


def rows_in_parts(_shape: Shape, _quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """Codes and block scales have an entry a row; the other scales belong to the matrix."""
    return {"weight": PartRows(), "weight_scale": PartRows()}


def decode(parts: Mapping[str, Tensor], _shape: Shape, _quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    from mtpforge.arithmetic import float4

    factors = parts["weight_scale"].float() * parts["weight_scale_2"]
    return float4.decode(parts["weight"], factors, signed_zero=False)


def matrix_parts(_shape: Shape, _quantization: Quantization, amax: Tensor | None) -> dict[str, Tensor]:
    """`weight_scale_2` [] for a largest magnitude, of all weights that share it."""
    from mtpforge.arithmetic import float4

    if amax is None:
        raise ValueError("the second scale needs the largest magnitude")
    return {"weight_scale_2": float4.scale_2(amax)}


def encode(rows: Tensor, _quantization: Quantization, matrix: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row parts of a band of float32 [rows, in]."""
    import torch

    from mtpforge.arithmetic import float4

    scale = float4.block_scales_modelopt(rows, matrix["weight_scale_2"])
    return {
        "weight": float4.encode(rows, scale * matrix["weight_scale_2"]),
        "weight_scale": scale.to(torch.float8_e4m3fn),
    }


def packed_rows(parts: Mapping[str, Tensor], _shape: Shape, _quantization: Quantization) -> PackedRows:
    """For the compiled decoder."""
    from mtpforge.arithmetic import float8

    return PackedRows("e2m1", parts["weight"], float8.to_float32(parts["weight_scale"]) * parts["weight_scale_2"])


def row_packing(columns: int, _quantization: Quantization, matrix: Mapping[str, Tensor]) -> RowPacking | None:
    """For the compiled encoder, which knows scales of usual size."""
    import torch

    from mtpforge.arithmetic import float4

    factor = float(matrix["weight_scale_2"])
    if not float4.is_usual(factor):
        return None

    def parts(codes: Tensor, scales: Tensor, _zeros: Tensor) -> dict[str, Tensor]:
        return {"weight": codes, "weight_scale": scales.view(torch.float8_e4m3fn)}

    return RowPacking("e2m1_modelopt", (factor,), nvfp4.BLOCK, (columns // 2, columns // nvfp4.BLOCK, 0), parts)


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: half of E2M1's widest gap."""
    from mtpforge.arithmetic import limits

    return limits.e2m1(parts["weight_scale"], parts["weight_scale_2"], quantization, shape)


def guesses(parts: Specs, _shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    yield quantization(static=_INPUT in parts)


FORMAT = Format(
    name="modelopt_nvfp4",
    shown=lambda _: "NVFP4",
    takes=TAKES,
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    bound=bound,
    guesses=guesses,
    codes=Codes("weight", "U8", least=0xFF, largest=0x77),
    reader="modelopt_nvfp4",
    reference="nvidia-modelopt NVFP4QTensor.dequantize",
    needs_amax=lambda _: True,
    matrix_parts=matrix_parts,
    encode=encode,
    packed_rows=packed_rows,
    row_packing=row_packing,
    input_scale=InputScale(_INPUT, 2688.0, not_under=frozenset({"W4A8_NVFP4_FP8"})),
)
