"""Plain floating-point numbers.

    weight   BF16, F16 or F32   [out, in]

value[r, c] = float32(weight[r, c])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError
from mtpforge.formats.format import Format, PackedRows, PartRows, RowPacking, Specs, only_rows
from mtpforge.tensors import DTYPES, Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_FLOATS: Final = ("BF16", "F16", "F32")
TAKES: Final = {"bits": (16, 32), "dtype": _FLOATS}


def recognise(parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Quantization | None:
    """The quantization if this is one tensor of plain numbers."""
    if set(parts) != {"weight"} or parts["weight"].dtype not in _FLOATS or parts["weight"].shape != shape:
        return None
    dtype = parts["weight"].dtype
    return Quantization("dense", bits=DTYPES[dtype].bits, dtype=dtype)


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """What a weight [out, in] is stored as."""
    return {"weight": Spec(quantization.dtype, shape)}


def rows_in_parts(_shape: Shape, _quantization: Quantization, _parts: Specs) -> dict[str, PartRows]:
    """A number of a row is a number of the part."""
    return {"weight": PartRows()}


def decode(parts: Mapping[str, Tensor], _shape: Shape, _quantization: Quantization) -> Tensor:
    """Float32 [rows, in]."""
    return parts["weight"].float()


def encode(rows: Tensor, quantization: Quantization, _matrix: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast to nearest even. A number that the dtype cannot hold is an error."""
    from mtpforge.arithmetic import scales

    weight = rows.to(scales.torch_dtype(quantization.dtype))
    low, high = weight.aminmax()
    if not low.isfinite() & high.isfinite():  # one answer: on a GPU the caller waits for it
        raise MtpforgeError(
            f"a weight does not fit into {quantization.dtype}",
            why="it would be stored as Inf",
            fix="name a scheme that keeps it: `--scheme bf16`",
        )
    return {"weight": weight}


def packed_rows(parts: Mapping[str, Tensor], _shape: Shape, quantization: Quantization) -> PackedRows | None:
    """For the compiled decoder, which knows BF16 and F32."""
    import torch

    if quantization.dtype not in {"BF16", "F32"}:
        return None
    weight = parts["weight"]
    return PackedRows(quantization.dtype.lower(), weight.view(torch.uint8), torch.empty(len(weight), 0))


def row_packing(columns: int, quantization: Quantization, _matrix: Mapping[str, Tensor]) -> RowPacking | None:
    """For the compiled encoder, which knows BF16."""
    import torch

    if quantization.dtype != "BF16":
        return None

    def parts(codes: Tensor, _scales: Tensor, _zeros: Tensor) -> dict[str, Tensor]:
        return {"weight": codes.view(torch.bfloat16)}

    return RowPacking("bf16", (), columns, (2 * columns, 0, 0), parts)


def bound(parts: Mapping[str, Tensor], _quantization: Quantization, _shape: Shape) -> Limit:
    """How far decoded weights may be off: half a step of their dtype."""
    from mtpforge.arithmetic import limits

    return limits.floats(parts["weight"].dtype)


def guesses(parts: Specs, _shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """What parts that are almost this format may have been meant to be."""
    dtype = parts["weight"].dtype if "weight" in parts else ""
    yield Quantization("dense", dtype=dtype if dtype in _FLOATS else "BF16")


FORMAT = Format(
    name="dense",
    shown=lambda q: q.dtype,
    takes=TAKES,
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    bound=bound,
    guesses=guesses,
    codes=None,
    reader="",
    reference="dense, nothing to decode",
    matrix_parts=only_rows,
    encode=encode,
    packed_rows=packed_rows,
    row_packing=row_packing,
)
