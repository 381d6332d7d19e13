"""Whole weights through the formats, for tests: told by their parts, decoded, encoded in bands as a build does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtpforge.arithmetic import scales
from mtpforge.errors import MtpforgeError
from mtpforge.formats import BAND_ROWS, FORMATS, Format, explain
from mtpforge.formats.format import Specs
from mtpforge.tensors import Quantization, Shape

# Scales in the shapes that ModelOpt and Quark have for them; of Quark's integers none but the config tells.
OTHER_SHAPES = (
    Quantization("modelopt_fp8", 8, strategy="channel", scale_dtype="F32"),
    Quantization("modelopt_fp8", 8, strategy="block", block=(128, 128), scale_dtype="F32"),
    Quantization("quark_int8", 8, strategy="channel", scale_dtype="F32"),
)
MICROSCALED = tuple(
    Quantization(name, bits, strategy="group", group_size=32, scale_dtype="U8")
    for name, bits in (("mxfp4", 4), ("quark_mxfp4", 4), ("mxfp8", 8))
)


def recognise(parts: Specs, shape: Shape, block: Mapping[str, object]) -> tuple[Format, Quantization]:
    """The one format and quantization of a weight [out, in]; MtpforgeError with the nearest miss where none fits."""
    found = [(f, q) for f in FORMATS.values() if (q := f.recognise(parts, shape, block)) is not None]
    assert len(found) < 2, "two formats read the same parts"
    if not found:
        raise MtpforgeError("a weight is stored in no known way", why=explain(parts, shape, block))
    return found[0]


def decode(parts: Mapping[str, Tensor], shape: Shape, quantization: Quantization) -> Tensor:
    """Float32 [out, in]."""
    return FORMATS[quantization.format].decode(parts, shape, quantization)


def encode(weights: Sequence[Tensor], quantization: Quantization) -> list[dict[str, Tensor]]:
    """The parts of weights, float32 [out, in], that share a matrix-wide scale where the format has one."""
    form = FORMATS[quantization.format]
    amax = torch.stack([scales.largest(weight) for weight in weights]).amax()
    stored = []
    for weight in weights:
        given = amax if form.needs_amax(quantization) else None
        shape = (weight.shape[0], weight.shape[1])
        matrix = form.matrix_parts(shape, quantization, given)
        bands = [form.encode(band, quantization, matrix) for band in torch.split(weight, BAND_ROWS)]
        lie = form.rows_in_parts(shape, quantization, form.layout(shape, quantization))
        stored.append(matrix | {s: torch.cat([band[s] for band in bands], lie[s].axis) for s in bands[0]})
    return stored
