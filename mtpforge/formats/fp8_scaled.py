"""FP8 under one scale for the matrix, for each row, or for each block: compressed-tensors, ModelOpt and Quark.

    weight         F8_E4M3   [out, in]
    weight_scale   F32, BF16 fp8_scaled                 modelopt_fp8
                             [1] or []                                        tensor
                             [out, 1]                   [out]                 channel; Quark too
                             [ceil / 128, ceil / 128]   [ceil, 1, ceil, 1]    block; Quark as fp8_scaled
    input_scale    F32, BF16 [1] or []                  static activations only: amax / 448

    value = float32(weight) * float32(weight_scale)

Engines take either shape by its method alone, so there are two formats. A row scale of shape [out] is safe here:
compressed-tensors would apply it to the columns of a square weight.
Sources: compressed-tensors 0.20.0 compressors/naive_quantized/base.py; nvidia-modelopt 0.47.0 export/quant_utils.py;
vllm 0.33.0 quantization/modelopt.py, KFp8StaticChannel and KFp8Block128, and quark/schemes/quark_w8a8_fp8.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from mtpforge.formats import blocks
from mtpforge.formats.format import Codes, Format, InputScale, PartRows, Specs
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_SCALAR: Final[tuple[Shape, ...]] = ((1,), ())
_INPUT: Final = "input_scale"
Strategy: TypeAlias = Literal["channel", "tensor", "block"]


@dataclass(frozen=True, slots=True)
class _Kind:
    """is_flat: scales of rows and blocks have two axes, as the weight has."""

    name: str
    strategies: tuple[Strategy, ...]
    is_flat: bool

    def scales(self, shape: Shape, quantization: Quantization) -> Shape:
        """Shape of the scales of a weight [out, in]."""
        if quantization.strategy == "tensor":
            return (1,)
        if quantization.strategy == "channel":
            return (shape[0], 1) if self.is_flat else (shape[0],)
        rows, columns = blocks.grid(shape, quantization.block or blocks.USUAL)
        return (rows, columns) if self.is_flat else (rows, 1, columns, 1)


_KINDS: Final = (
    _Kind("fp8_scaled", ("channel", "tensor", "block"), is_flat=True),
    _Kind("modelopt_fp8", ("channel", "block"), is_flat=False),
)


def recognise(kind: _Kind, parts: Specs, shape: Shape, block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are FP8 with `weight_scale` in the shapes of this kind."""
    if set(parts) - {_INPUT} != {"weight", "weight_scale"} or parts["weight"] != Spec("F8_E4M3", shape):
        return None
    scale, given = parts["weight_scale"], parts.get(_INPUT)
    if scale.dtype not in blocks.SCALES or (given and (given.dtype not in blocks.SCALES or given.shape not in _SCALAR)):
        return None
    static: Literal["static", "none"] = "static" if given else "none"
    found = Quantization(kind.name, 8, scale_dtype=scale.dtype, input_scale=static)
    if scale.shape in _SCALAR:  # a weight of one row has one scale either way
        return replace(found, strategy="tensor") if "tensor" in kind.strategies else None
    channel = replace(found, strategy="channel")
    if scale.shape == kind.scales(shape, channel):
        return channel
    covers = blocks.fitting(_grid(kind, scale.shape), shape, block)
    return None if covers is None else replace(found, strategy="block", block=covers)


def _grid(kind: _Kind, scale: Shape) -> Shape:
    """[row blocks, column blocks] of scales of blocks; () where they are none of this kind."""
    match scale:
        case (rows, 1, columns, 1) if not kind.is_flat:
            return rows, columns
        case (_, _) if kind.is_flat:
            return scale
    return ()


def layout(kind: _Kind, shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    scale = Spec(quantization.scale_dtype or "F32", kind.scales(shape, quantization))
    specs = {"weight": Spec("F8_E4M3", shape), "weight_scale": scale}
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


def encode(kind: _Kind, rows: Tensor, quantization: Quantization, matrix: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row parts of a band of float32 [rows, in]."""
    from mtpforge.arithmetic import float8, scales

    if quantization.strategy == "tensor":
        return {"weight": float8.encode(rows, matrix["weight_scale"].float())}
    shape = kind.scales((rows.shape[0], rows.shape[1]), quantization)
    if quantization.strategy == "block":
        weight, scale = blocks.encode(rows, quantization)
        return {"weight": weight, "weight_scale": scale.view(shape)}
    dtype = scales.torch_dtype(quantization.scale_dtype or "F32")
    factors = float8.scale_for(scales.group_largest(rows), dtype).unsqueeze(1)
    return {"weight": float8.encode(rows, factors), "weight_scale": factors.to(dtype).view(shape)}


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: three bits of mantissa."""
    from mtpforge.arithmetic import limits

    return limits.e4m3(parts["weight_scale"], quantization, shape)


def guesses(kind: _Kind, parts: Specs, _shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    if not kind.is_flat and parts.get("weight", Spec("", ())).dtype != "F8_E4M3":
        return
    dtype = blocks.scale_dtype(parts.get("weight_scale", parts.get("weight_scale_inv")))
    statics: tuple[Literal["static", "none"], ...] = ("static", "none") if _INPUT in parts else ("none",)
    for static in statics:
        for strategy in kind.strategies:
            covers = blocks.USUAL if strategy == "block" else None
            yield Quantization(kind.name, 8, strategy=strategy, block=covers, scale_dtype=dtype, input_scale=static)


def _format(kind: _Kind) -> Format:
    return Format(
        name=kind.name,
        shown=lambda _: "FP8",
        takes={
            "bits": (8,),
            "strategy": kind.strategies,
            "scale_dtype": blocks.SCALES,
            "input_scale": ("none", "dynamic", "static"),
        },
        recognise=partial(recognise, kind),
        layout=partial(layout, kind),
        rows_in_parts=rows_in_parts,
        decode=decode,
        bound=bound,
        guesses=partial(guesses, kind),
        codes=Codes("weight", "F8_E4M3"),
        reader="fp8_scaled",
        reference="compressed-tensors float-quantized decompress",
        needs_amax=needs_amax,
        matrix_parts=matrix_parts,
        encode=partial(encode, kind),
        input_scale=InputScale(_INPUT, 448.0),
        same_bytes={"fp8_block": {"weight_scale": "weight_scale_inv"}} if kind.is_flat else {},
    )


FORMAT, MODELOPT = (_format(kind) for kind in _KINDS)
