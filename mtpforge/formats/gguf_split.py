"""kv_b of GGUF, in two parts as llama.cpp multiplies by it: cut between keys and values, the keys turned. Read only.

    k_b, k_b_<type>   [heads, in, keys]      turned before it was stored, so that its blocks run along the keys
    v_b, v_b_<type>   [heads, values, in]

Plain numbers, or U8 of blocks as in gguf.py; either part in a type of its own. With 192 keys there are no blocks of
256: `quantize` falls back to another type for them.

    weight [heads * (keys + values), in] = of every head: k_b turned back, then v_b

Source: llama.cpp conversion/deepseek.py, DeepseekV2Model.modify_tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError
from mtpforge.formats import gguf
from mtpforge.formats.format import Format, PartRows, Specs
from mtpforge.ggml import CODED, TYPES, GgmlType
from mtpforge.tensors import Quantization, Shape, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.arithmetic.limits import Limit

_KEYS, _VALUES = "k_b", "v_b"
_PLAIN: Final = {t.dtype: t for t in TYPES.values() if t.dtype and t.is_read}
_CODED: Final = {f"{half}_{t.name.lower()}": t for t in CODED.values() for half in (_KEYS, _VALUES)}


def recognise(parts: Specs, shape: Shape, _block: Mapping[str, object]) -> Quantization | None:
    """The quantization if these parts are a matrix that was cut in two: the type with fewer bits names it."""
    halves = [_half(parts, name) for name in (_KEYS, _VALUES)]
    if len(parts) != len(halves) or None in halves:
        return None
    (_, of_keys, (heads, _, _)), (_, of_values, _) = (half for half in halves if half)
    per_head, rest = divmod(shape[0], heads)
    n_values = parts[_suffix(parts, _VALUES)].shape[1]
    expected = {
        _suffix(parts, _KEYS): _spec(of_keys, (heads, shape[1], per_head - n_values)),
        _suffix(parts, _VALUES): _spec(of_values, (heads, n_values, shape[1])),
    }
    coarser = min(of_keys, of_values, key=_bits)
    found = Quantization("gguf_split", _bits(coarser), coarser.name)
    return found if not rest and per_head > n_values and expected == dict(parts) else None


def _suffix(parts: Mapping[str, object], half: str) -> str:
    return next((suffix for suffix in parts if suffix == half or suffix.startswith(f"{half}_")), "")


def _half(parts: Specs, half: str) -> tuple[str, GgmlType, tuple[int, int, int]] | None:
    """Suffix, type and stored shape of a part, None where it is not there."""
    suffix = _suffix(parts, half)
    spec = parts.get(suffix, Spec("", ()))
    stored_as = _of(suffix, spec.dtype)
    if stored_as is None or len(spec.shape) != 3:  # noqa: PLR2004  # heads, rows, columns
        return None
    return suffix, stored_as, (spec.shape[0], spec.shape[1], spec.shape[2])


def _of(suffix: str, dtype: str) -> GgmlType | None:
    return _CODED.get(suffix) if dtype == "U8" else _PLAIN.get(dtype)


def _spec(stored_as: GgmlType, shape: Shape) -> Spec:
    if stored_as.dtype:
        return Spec(stored_as.dtype, shape)
    width, rest = divmod(shape[2], stored_as.block)
    return Spec("U8" if not rest else "", (*shape[:2], width * stored_as.n_bytes))


def _bits(stored_as: GgmlType) -> int:
    return 8 * stored_as.n_bytes if stored_as.dtype else stored_as.bits


def layout(shape: Shape, quantization: Quantization) -> dict[str, Spec]:
    """No weight is ever stored so: how it would be cut, its shape does not say."""
    raise MtpforgeError(
        f"a weight of shape {list(shape)} does not say how it would be cut in two ({quantization.dtype})",
        why="kv_b in two parts is only read",
    )


def rows_in_parts(shape: Shape, _quantization: Quantization, parts: Specs) -> dict[str, PartRows]:
    """All rows of a head are one entry of each part."""
    return {suffix: PartRows(rows=shape[0] // spec.shape[0]) for suffix, spec in parts.items()}


def decode(parts: Mapping[str, Tensor], shape: Shape, _quantization: Quantization) -> Tensor:
    """Float32 [rows, in], of whole heads."""
    import torch

    turned, values = (_decoded(_suffix(parts, half), parts) for half in (_KEYS, _VALUES))
    return torch.cat([turned.transpose(1, 2), values], dim=1).reshape(shape)


def _decoded(suffix: str, parts: Mapping[str, Tensor]) -> Tensor:
    stored_as = _CODED.get(suffix)
    return gguf.values(parts[suffix], stored_as) if stored_as else parts[suffix].float()


def bound(parts: Mapping[str, Tensor], quantization: Quantization, shape: Shape) -> Limit:
    """As of gguf.py."""
    return gguf.bound(parts, quantization, shape)


def guesses(_parts: Specs, _shape: Shape, _block: Mapping[str, object]) -> Iterator[Quantization]:
    """Nothing: what is stored so says so by its names."""
    yield from ()


FORMAT = Format(
    name="gguf_split",
    shown=lambda q: f"{q.dtype} in two parts",
    takes={
        "bits": tuple(sorted({_bits(t) for t in (*CODED.values(), *_PLAIN.values())})),
        "dtype": (*CODED, *(t.name for t in _PLAIN.values())),
    },
    recognise=recognise,
    layout=layout,
    rows_in_parts=rows_in_parts,
    decode=decode,
    bound=bound,
    guesses=guesses,
    codes=None,
    reader="",
    reference=gguf.REFERENCE,
    package=lambda q: gguf.PACKAGE if q.dtype in CODED else "",
)
