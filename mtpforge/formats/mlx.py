"""MLX `affine`: integers of 2 to 6 and 8 bits with a scale and a bias for every group. Read only.

    weight   U32              [out, in * b / 32]    dense stream along the columns
    scales   BF16, F16, F32   [out, in / g]         may be negative
    biases   the same         [out, in / g]

    value = round(round(code * scale) + bias)       code 0 to 2^b - 1; round: to the dtype of the scales

The roundings are mx.dequantize's own, which computes in the dtype of the scales: without them half of the BF16 values
are others. MLX's own matrix products keep float32 where this rounds. Bits and groups are each weight's own, by the
shapes: `quantization` in config.json has overrides by name. Its other modes, mxfp4, nvfp4 and mxfp8, have no biases.
Source: mlx 0.32.4 mx.quantize, mx.dequantize.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError
from mtpforge.formats.format import Codes, Format, PartRows, Specs
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_BITS: Final = (4, 8, 2, 3, 5, 6)
_SCALES: Final = ("BF16", "F16", "F32")
_SIZES: Final = (64, 32, 128)


def recognise(parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are MLX's integers."""
    found = _shaped(parts, shape)
    return found if found and _holds(shape, found) and layout(shape, found) == dict(parts) else None


def _shaped(parts: Specs, shape: Shape) -> Quantization | None:
    """What the shapes of codes and scales say."""
    words, scale, columns = parts.get("weight"), parts.get("scales"), shape[-1]
    if words is None or scale is None or not words.shape or not scale.shape or not scale.shape[-1] or not columns:
        return None
    bits, size = words.shape[-1] * 32 // columns, columns // scale.shape[-1]
    if bits not in _BITS or scale.dtype not in _SCALES or not size:
        return None
    return Quantization("mlx", bits, "", "group", size, symmetric=False, scale_dtype=scale.dtype)


def _holds(shape: Shape, quantization: Quantization) -> bool:
    """Whether columns fill whole words and whole groups."""
    whole = 32 // math.gcd(32, quantization.bits)
    return not (shape[1] % whole or shape[1] % (quantization.group_size or shape[1]))


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    (rows, columns), bits, size = shape, quantization.bits, quantization.group_size or shape[1]
    if not _holds(shape, quantization):
        raise MtpforgeError(
            f"MLX holds no weight of {columns} columns in {bits} bits, groups of {size}",
            why="words are full, and groups are not cut",
        )
    scales = Spec(quantization.scale_dtype or "BF16", (rows, columns // size))
    return {"weight": Spec("U32", (rows, columns * bits // 32)), "scales": scales, "biases": scales}


def rows_in_parts(_shape: Shape, _quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """Everything has an entry a row."""
    return {"weight": PartRows(), "scales": PartRows(), "biases": PartRows()}


def decode(parts: Mapping[str, Tensor], shape: Shape, quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    import torch

    from mtpforge.arithmetic import affine, bits

    codes = bits.unpack(parts["weight"].view(torch.int32), quantization.bits, shape[1])
    groups = codes.view(shape[0], parts["scales"].shape[1], -1)
    return affine.dequantize_biased(groups, parts["scales"], parts["biases"]).flatten(1)


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """How far decoded weights may be off: one step, and what scale, product and sum are rounded by."""
    from mtpforge.arithmetic import limits

    return limits.biased_integers(parts["scales"], quantization, shape)


def guesses(parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be; nothing where there are no `biases`."""
    if "biases" not in parts:
        return
    if found := _shaped(parts, shape):
        yield found
    for bits in _BITS:
        for size in _SIZES:
            yield Quantization("mlx", bits, "", "group", size, symmetric=False, scale_dtype="BF16")


FORMAT = Format(
    name="mlx",
    shown=lambda q: f"INT{q.bits}",
    takes={"bits": _BITS, "strategy": ("group",), "symmetric": (False,), "scale_dtype": _SCALES},
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    bound=bound,
    guesses=guesses,
    codes=Codes("weight", "U32", least=0, largest=2**32 - 1),
    reader="",
    reference="MLX, whose library is not asked",
)
