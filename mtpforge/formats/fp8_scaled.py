"""FP8 under one scale for the matrix, for each row, or for each block: compressed-tensors and ModelOpt.

    weight         F8_E4M3   [out, in]
    weight_scale   F32, BF16 [1]                      tensor    ModelOpt: []
                             [out, 1]                 channel   ModelOpt: [out]
                             [ceil / 128, ceil / 128] block     ModelOpt: [ceil, 1, ceil, 1]
    input_scale    F32, BF16 [1] or []                static activations only: amax / 448

    value = float32(weight) * float32(weight_scale)

Both libraries' shapes are read, compressed-tensors' are written. A row scale of shape [out] is safe here: the library
would apply it to the columns of a square weight.
Sources: compressed-tensors 0.20.0 compressors/naive_quantized/base.py; nvidia-modelopt 0.47.0 export/quant_utils.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, Literal

from mtpforge.formats import blocks
from mtpforge.formats.format import Codes, Format, InputScale, PartRows, Specs
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

TAKES: Final = {
    "bits": (8,),
    "strategy": ("tensor", "channel", "block"),
    "scale_dtype": blocks.SCALES,
    "input_scale": ("none", "dynamic", "static"),
}
_SCALAR: Final[tuple[Shape, ...]] = ((1,), ())
_INPUT: Final = "input_scale"


def recognise(parts: Specs, shape: Shape, block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are FP8 with `weight_scale`."""
    if set(parts) - {_INPUT} != {"weight", "weight_scale"} or parts["weight"] != Spec("F8_E4M3", shape):
        return None
    scale, given = parts["weight_scale"], parts.get(_INPUT)
    if scale.dtype not in blocks.SCALES or (given and (given.dtype not in blocks.SCALES or given.shape not in _SCALAR)):
        return None
    static: Literal["static", "none"] = "static" if given else "none"
    if scale.shape in _SCALAR:
        return Quantization("fp8_scaled", 8, strategy="tensor", scale_dtype=scale.dtype, input_scale=static)
    if scale.shape in ((shape[0], 1), (shape[0],)):
        return Quantization("fp8_scaled", 8, strategy="channel", scale_dtype=scale.dtype, input_scale=static)
    covers = blocks.fitting(_flat(scale.shape), shape, block)
    if covers is None:
        return None
    return Quantization("fp8_scaled", 8, strategy="block", block=covers, scale_dtype=scale.dtype, input_scale=static)


def _flat(grid: Shape) -> Shape:
    """ModelOpt's [row blocks, 1, column blocks, 1] as [row blocks, column blocks]; other shapes as they are."""
    match grid:
        case (rows, 1, columns, 1):
            return rows, columns
    return grid


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    scale = {
        "tensor": (1,),
        "channel": (shape[0], 1),
        "block": blocks.grid(shape, quantization.block or blocks.USUAL),
    }[quantization.strategy]
    specs = {"weight": Spec("F8_E4M3", shape), "weight_scale": Spec(quantization.scale_dtype or "F32", scale)}
    if quantization.input_scale == "static":
        specs[_INPUT] = Spec("F32", (1,))
    return specs


def rows_in_parts(_shape: Shape, quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """One scale for all belongs to the matrix, those of rows and blocks follow the rows; in either library's shape."""
    covers = {"channel": 1, "block": (quantization.block or blocks.USUAL)[0]}.get(quantization.strategy)
    return {"weight": PartRows()} | ({"weight_scale": PartRows(rows=covers)} if covers else {})


def decode(parts: Mapping[str, Tensor], shape: Shape, quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    from mtpforge.arithmetic import float8

    scale = parts["weight_scale"]
    if quantization.strategy == "block":
        covers = quantization.block or blocks.USUAL
        return float8.decode_blocks(parts["weight"], scale.reshape(blocks.grid(shape, covers)), covers)
    return float8.decode(parts["weight"], scale.reshape(-1, 1))


def needs_amax(quantization: Quantization) -> bool:
    """Whether one scale covers the whole matrix."""
    return quantization.strategy == "tensor"


def matrix_parts(_shape: Shape, quantization: Quantization, amax: Tensor | None) -> dict[str, Tensor]:
    """`weight_scale` [1] under strategy tensor; nothing else has a part of the whole matrix."""
    from mtpforge.arithmetic import float8, scales

    if amax is None:
        return {}
    dtype = scales.torch_dtype(quantization.scale_dtype or "F32")
    return {"weight_scale": float8.scale_for(amax.reshape(1), dtype).to(dtype)}


def encode(rows: Tensor, quantization: Quantization, matrix: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row parts of a band of float32 [rows, in]."""
    from mtpforge.arithmetic import float8, scales

    if quantization.strategy == "tensor":
        return {"weight": float8.encode(rows, matrix["weight_scale"].float())}
    if quantization.strategy == "block":
        weight, scale = blocks.encode(rows, quantization)
        return {"weight": weight, "weight_scale": scale}
    dtype = scales.torch_dtype(quantization.scale_dtype or "F32")
    factors = float8.scale_for(scales.group_largest(rows), dtype).unsqueeze(1)
    return {"weight": float8.encode(rows, factors), "weight_scale": factors.to(dtype)}


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: three bits of mantissa."""
    from mtpforge.arithmetic import limits

    return limits.e4m3(parts["weight_scale"], quantization, shape)


def guesses(parts: Specs, _shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    dtype = blocks.scale_dtype(parts.get("weight_scale", parts.get("weight_scale_inv")))
    statics: tuple[Literal["static", "none"], ...] = ("static", "none") if _INPUT in parts else ("none",)
    strategies: tuple[Literal["channel", "tensor", "block"], ...] = ("channel", "tensor", "block")
    for static in statics:
        for strategy in strategies:
            covers = blocks.USUAL if strategy == "block" else None
            yield Quantization("fp8_scaled", 8, strategy=strategy, block=covers, scale_dtype=dtype, input_scale=static)


FORMAT = Format(
    name="fp8_scaled",
    shown=lambda _: "FP8",
    takes=TAKES,
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    bound=bound,
    guesses=guesses,
    codes=Codes("weight", "F8_E4M3"),
    reader="fp8_scaled",
    reference="compressed-tensors float-quantized decompress",
    needs_amax=needs_amax,
    matrix_parts=matrix_parts,
    encode=encode,
    input_scale=InputScale(_INPUT, 448.0),
)
