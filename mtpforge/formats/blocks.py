"""Blocks of FP8: which size a checkpoint uses, and the encoder that two formats share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError
from mtpforge.formats.format import BAND_ROWS, declared_weights
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

USUAL: Final = (128, 128)
SCALES: Final = ("F32", "BF16")  # dtypes of the scales


def scale_dtype(scale: Spec | None) -> str:
    """The dtype that these scales were most likely meant to have."""
    return scale.dtype if scale is not None and scale.dtype in SCALES else SCALES[0]


def grid(shape: Shape, block: tuple[int, int]) -> Shape:
    """Shape of the scales of a weight [out, in]: one a block, cut ones included. Blocks that a band cuts: an error."""
    if BAND_ROWS % block[0]:
        raise MtpforgeError(
            f"FP8 blocks of {block[0]} rows can be neither read nor written",
            why=f"weights pass in bands of {BAND_ROWS} rows, which such blocks would straddle",
            fix="name a checkpoint with blocks of 128 x 128, as every published one has",
        )
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def fitting(scale: Shape, shape: Shape, block: Mapping[str, object]) -> tuple[int, int] | None:
    """The block size that gives these scales, the config's first, then 128 x 128; None where neither does."""
    for rows, columns in (*_declared(block), USUAL):
        if rows > 0 and columns > 0 and BAND_ROWS % rows == 0 and grid(shape, (rows, columns)) == scale:
            return rows, columns
    return None


def _declared(block: Mapping[str, object]) -> Iterator[tuple[int, int]]:
    """`weight_block_size` of quant_method fp8, `block_structure` of compressed-tensors."""
    for size in (block.get("weight_block_size"), *(w.get("block_structure") for w in declared_weights(block))):
        match size:
            case [int(rows), int(columns)]:
                yield rows, columns


def encode(rows: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor]:
    """Codes float8_e4m3fn [rows, in] and their scales, in the stored dtype, of a band of float32 [rows, in]."""
    from mtpforge.arithmetic import float8, scales

    block = quantization.block or USUAL
    dtype = scales.torch_dtype(quantization.scale_dtype or "F32")
    scale = float8.scale_for(float8.block_amax(rows, block), dtype)
    return float8.encode_blocks(rows, scale, block), scale.to(dtype)
