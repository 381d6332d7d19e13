"""Formats: the table by name, and what is done with a whole weight.

A format is one file and one line here. `recognise` and `explain` need headers only; `encode` and `decode` load torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError
from mtpforge.formats import (
    dense,
    explaining,
    fp8_block,
    fp8_scaled,
    int_quantized,
    modelopt_nvfp4,
    nvfp4,
    pack_quantized,
)
from mtpforge.formats.format import BAND_ROWS, Format, InputScale, Specs
from mtpforge.tensors import Quantization, Shape

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BAND_ROWS", "FORMATS", "Format", "InputScale", "decode", "encode", "explain", "recognise"]

FORMATS: Final[dict[str, Format]] = {
    form.name: form
    for form in (
        dense.FORMAT,
        fp8_block.FORMAT,
        fp8_scaled.FORMAT,
        nvfp4.FORMAT,
        modelopt_nvfp4.FORMAT,
        pack_quantized.FORMAT,
        int_quantized.FORMAT,
    )
}


def recognise(parts: Specs, shape: Shape, block: Mapping[str, object]) -> tuple[Format, Quantization]:
    """The format and quantization of a weight [out, in] by its parts; MtpforgeError where none fits, or several do."""
    found = [(form, q) for form in FORMATS.values() if (q := form.recognise(parts, shape, block)) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(form.name for form, _ in found)
        raise MtpforgeError(f"a weight is stored in a way that {names} both read", why="a defect of mtpforge")
    raise MtpforgeError(
        "a weight is stored in no known way",
        why=explain(parts, shape, block),
        fix="download the checkpoint again, or name another `--source`",
    )


def explain(parts: Specs, shape: Shape, block: Mapping[str, object]) -> str:
    """Why no format recognises these parts: the nearest format, and what is missing, odd or of another shape."""
    return explaining.nearest_miss(FORMATS, parts, shape, block)


def decode(parts: Mapping[str, Tensor], shape: Shape, quantization: Quantization) -> Tensor:
    """A whole weight, float32 [out, in]."""
    return FORMATS[quantization.format].decode(parts, shape, quantization)


def encode(weights: Sequence[Tensor], quantization: Quantization) -> list[dict[str, Tensor]]:
    """The parts of whole weights, float32 [out, in], that share a matrix-wide scale where the format has one.

    NaN or Inf, and a format that is only read, are an MtpforgeError.
    """
    import torch

    from mtpforge.arithmetic import scales

    form = FORMATS[quantization.format]
    if form.encode is None or form.matrix_parts is None:
        raise MtpforgeError(f"mtpforge reads {quantization} and does not write it")
    amax = torch.stack([scales.largest(weight) for weight in weights]).amax()
    stored = []
    for weight in weights:
        given = amax if form.needs_amax(quantization) else None
        matrix = form.matrix_parts((weight.shape[0], weight.shape[1]), quantization, given)
        bands = [form.encode(band, quantization, matrix) for band in torch.split(weight, BAND_ROWS)]
        stored.append(matrix | {suffix: torch.cat([band[suffix] for band in bands]) for suffix in bands[0]})
    return stored
