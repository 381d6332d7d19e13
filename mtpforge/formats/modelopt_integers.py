"""ModelOpt's integers, which are read and not written: W4A16_AWQ, W4A8_AWQ, and INT8 of W8A8_SQ_PER_CHANNEL and W8A16.

                       modelopt_int4                   modelopt_int8
    weight             U8    [out / 2, in]             I8   [out, in]
    weight_scale       F32   [out, in / group_size]    F32  [out]          BF16 and F16 are read too
    pre_quant_scale    F32   [in]                      where the inputs are smoothed
    input_scale        F32   []                        of activations; no weight depends on it
    weight_scale_2     F32   []                        of W4A8_AWQ, for the FP8 numbers that a kernel makes of int4's

    int4   row 2r is the low nibble of row r of `weight`, row 2r + 1 the high one, both in two's complement
    value = code * weight_scale * pre_quant_scale[column]

An input is multiplied by `pre_quant_scale` before it meets the weight; here the weight is, so that plain inputs fit.
Whether an [out] scale of integers of 8 bits is of rows, the config has to say: compressed-tensors takes it for columns.
Source: nvidia-modelopt 0.47.0 torch/export/quant_utils.py, pack_int4_in_uint8, get_weight_scaling_factor and
to_quantized_weight; torch/quantization/nn/modules/tensor_quantizer.py, pre_quant_scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from mtpforge.formats.format import Codes, Format, PartRows, Specs
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_SCALES: Final = ("F32", "BF16", "F16")
_SMOOTHING: Final = "pre_quant_scale"
_INPUT: Final = "input_scale"
_OF_KERNEL: Final = "weight_scale_2"
_METHOD: Final = "modelopt"


def recognise(bits: int, parts: Specs, shape: Shape, block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are ModelOpt's integers of so many bits."""
    scale, smoothing = parts.get("weight_scale"), parts.get(_SMOOTHING)
    if scale is None or scale.dtype not in _SCALES or (smoothing and smoothing.shape != shape[1:]):
        return None
    found = _found(bits, scale, shape, block)
    if found is None:
        return None
    beside = (_OF_KERNEL,) if bits < 8 else ()  # noqa: PLR2004
    held = {suffix: spec for suffix, spec in parts.items() if suffix not in (_SMOOTHING, _INPUT, *beside)}
    return found if layout(bits, shape, found) == held else None


def _found(bits: int, scale: Spec, shape: Shape, block: Mapping[str, object]) -> Quantization | None:
    name = f"modelopt_int{bits}"
    if bits == 8:  # noqa: PLR2004
        is_said = str(block.get("quant_method", "")).startswith(_METHOD)
        return Quantization(name, bits, strategy="channel", scale_dtype=scale.dtype) if is_said else None
    match scale.shape:
        case (_, n_groups) if n_groups and shape[1] % n_groups == 0 and shape[0] % 2 == 0:
            size = shape[1] // n_groups
            return Quantization(name, bits, strategy="group", group_size=size, scale_dtype=scale.dtype)
    return None


def layout(bits: int, shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as, where its inputs are not smoothed."""
    rows, columns = shape
    dtype = quantization.scale_dtype or _SCALES[0]
    if bits == 8:  # noqa: PLR2004
        return {"weight": Spec("I8", shape), "weight_scale": Spec(dtype, (rows,))}
    groups = columns // (quantization.group_size or columns)
    return {"weight": Spec("U8", (-(-rows // 2), columns)), "weight_scale": Spec(dtype, (rows, groups))}


def rows_in_parts(bits: int, _shape: Shape, _quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """Two rows of 4 bits share one of the part."""
    return {"weight": PartRows(rows=8 // bits), "weight_scale": PartRows()}


def decode(bits: int, parts: Mapping[str, Tensor], shape: Shape, _quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    import torch

    from mtpforge.arithmetic import affine

    stored, scale = parts["weight"].view(torch.uint8), parts["weight_scale"].view(shape[0], -1)
    codes = stored if bits == 8 else torch.stack([stored & 15, stored >> 4], 1).flatten(0, 1)  # noqa: PLR2004
    unsigned = codes[: shape[0]] ^ (1 << (bits - 1))
    values = affine.dequantize(unsigned.view(shape[0], scale.shape[1], -1), scale, None, bits).flatten(1)
    smoothing = parts.get(_SMOOTHING)
    return values if smoothing is None else values * smoothing.float()


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: half a step, and what rounding the scale clips."""
    from mtpforge.arithmetic import limits

    return limits.integers(parts["weight_scale"], quantization, shape)


def guesses(bits: int, parts: Specs, _shape: Shape, block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    if str(block.get("quant_method", "")).startswith(_METHOD) and "weight_scale" in parts:
        size = None if bits == 8 else 128  # noqa: PLR2004
        yield Quantization(
            f"modelopt_int{bits}", bits, strategy="group" if size else "channel", group_size=size, scale_dtype="F32"
        )


def _format(bits: int) -> Format:
    return Format(
        name=f"modelopt_int{bits}",
        shown=lambda q: f"INT{q.bits}",
        takes={"bits": (bits,), "strategy": ("group", "channel"), "scale_dtype": _SCALES},
        recognise=partial(recognise, bits),
        layout=partial(layout, bits),
        rows_in_parts=partial(rows_in_parts, bits),
        decode=partial(decode, bits),
        bound=bound,
        guesses=partial(guesses, bits),
        codes=Codes("weight", "U8" if bits < 8 else "I8"),  # noqa: PLR2004
        reader="",
        reference="ModelOpt, which writes these integers and has no decoder for them",
    )


FORMATS: Final = tuple(_format(bits) for bits in (4, 8))
