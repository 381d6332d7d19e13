"""What GGUF stores in codes: blocks of numbers, scales among them, row after row. Read only.

    weight_<type>   U8    [out, bytes of a row]    e.g. weight_q4_k: 144 bytes for 256 numbers
    scale           F32   [] or [1]                with NVFP4: of the whole matrix

    value = what gguf.quants.dequantize makes of the row, in float32; * scale

The gguf package decodes: two dozen types, with grids of their own, are kept there by those who write them. It is an
extra (`mtpforge[gguf]`) and imported by who decodes. Plain numbers of GGUF are format `dense`; an attention matrix in
two parts is gguf_split.py.
Source: gguf 0.19.0 quants.py; llama.cpp conversion/base.py, _write_scale_tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MACHINE, MtpforgeError
from mtpforge.formats.format import Format, PartRows, Specs
from mtpforge.ggml import CODED, GgmlType
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

PACKAGE: Final = "gguf"
REFERENCE: Final = "GGUF, decoded by the gguf package itself"
_SCALE: Final = "scale"
_SCALES: Final = (Spec("F32", ()), Spec("F32", (1,)))
_BY_PART: Final = {stored_as.part: stored_as for stored_as in CODED.values()}


def recognise(parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are a matrix in one of GGUF's types."""
    stored_as = _type(parts)
    if stored_as is None or shape[1] % stored_as.block or parts.get(_SCALE, _SCALES[0]) not in _SCALES:
        return None
    found = quantization("gguf", stored_as)
    return found if layout(shape, found) == {s: spec for s, spec in parts.items() if s != _SCALE} else None


def quantization(name: str, stored_as: GgmlType) -> Quantization:
    """The one quantization of a type."""
    return Quantization(name, stored_as.bits, stored_as.name)


def _type(parts: Mapping[str, object]) -> GgmlType | None:
    return next((stored_as for part in parts if (stored_as := _BY_PART.get(part))), None)


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as, the scale of a matrix left out: it may be there or not."""
    stored_as, (rows, columns) = CODED[quantization.dtype], shape
    if columns % stored_as.block:
        raise MtpforgeError(
            f"{stored_as.name} holds no weight of {columns} columns",
            why=f"{stored_as.block} numbers of a row make a block",
        )
    return {stored_as.part: Spec("U8", (rows, columns // stored_as.block * stored_as.n_bytes))}


def rows_in_parts(_shape: Shape, quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """Blocks of a row lie together; a scale belongs to the whole matrix."""
    return {CODED[quantization.dtype].part: PartRows()}


def decode(parts: Mapping[str, Tensor], _shape: Shape, quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    stored_as = CODED[quantization.dtype]
    numbers = values(parts[stored_as.part], stored_as)
    return numbers * parts[_SCALE].to(numbers.device) if _SCALE in parts else numbers


def values(blocks: Tensor, stored_as: GgmlType) -> Tensor:
    """Float32 [..., in] of uint8 [..., bytes of a row]. MtpforgeError, code 5, where the gguf package is missing."""
    import numpy as np
    import torch

    try:
        from gguf import quants
        from gguf.constants import GGMLQuantizationType
    except ImportError:
        raise missing() from None
    with np.errstate(all="ignore"):  # a scale may be Inf; what comes of it is looked at by who asked
        decoded = quants.dequantize(blocks.cpu().contiguous().numpy(), GGMLQuantizationType(stored_as.number))
    return torch.from_numpy(decoded).to(blocks.device)


def missing() -> MtpforgeError:
    """The error where the package is not there."""
    return MtpforgeError(
        "weights in GGUF need the gguf package, which is missing",
        why="it decodes GGUF's types; nothing else here needs it",
        fix="`pip install 'mtpforge[gguf]'`",
        code=MACHINE,
    )


def bound(_parts: Mapping[str, Tensor], _quantization: Quantization, _shape: Shape) -> Limit:
    """Nothing is written so, and nothing judged by how near it is to what it was made from."""
    raise AssertionError("GGUF is only read")


def guesses(parts: Specs, _shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    if stored_as := _type(parts):
        yield quantization("gguf", stored_as)


FORMAT = Format(
    name="gguf",
    shown=lambda q: q.dtype,
    takes={"bits": tuple(sorted({t.bits for t in CODED.values()})), "dtype": tuple(CODED)},
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    bound=bound,
    guesses=guesses,
    codes=None,
    reader="",
    reference=REFERENCE,
    package=lambda _: PACKAGE,
)
