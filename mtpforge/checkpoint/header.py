"""The safetensors header: bounded parse, every way to be invalid refused before anything is allocated for it.

    8 bytes     length n of the header, little-endian
    n bytes     JSON: {name: {"dtype": ..., "shape": [...], "data_offsets": [start, stop]}, "__metadata__": {...}}
    the rest    the tensors: no hole, no overlap, no byte left over

Never laxer than the library (safetensors/src/tensor.rs, 0.8.0), and stricter in three things: a key that appears twice
is refused (the library keeps the last), names are printable and bounded, and a tensor has at most 64 dimensions.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable
from reprlib import repr as brief  # of a value that may be as large and as deep as the file
from typing import Final

from mtpforge.checkpoint import json_fields
from mtpforge.checkpoint.tensor_names import WITHIN, plain
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.tensors import DTYPES, Shape, Spec, TensorRef

LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000  # MAX_HEADER_SIZE of the library
MAX_TENSORS: Final = 500_000  # GLM-5.2 in the most tensors per weight has 240,000
MAX_NAME_CHARACTERS: Final = 1_024  # names of published checkpoints stay below 150
MAX_DIMENSIONS: Final = 64  # of a tensor in torch and of an array in numpy
MAX_BITS: Final = 2**63  # beyond it, sizes overflow in every reader written in C or Rust
_MAX_DIGITS: Final = 19  # of 2^63; int() of a longer text takes time with its square
# An object, two lists and about seven commas a tensor; some are left for names and metadata.
_MOST_SIGNS: Final = {b"{": 2 * MAX_TENSORS, b"[": 3 * MAX_TENSORS, b",": 10 * MAX_TENSORS}
METADATA: Final = "__metadata__"


# How files begin that are taken for safetensors: torch.save writes a zip archive, before torch 1.6 bare pickle.
_OTHERS: Final = {b"PK\x03\x04": "pickle in a zip archive", b"GGUF": "GGUF"} | {
    bytes((0x80, protocol)): "pickle" for protocol in range(2, 6)
}


def other_kind(first: bytes) -> str:
    """What a file is whose first bytes are those of another kind of weights: "pickle", "GGUF"; "" for none known."""
    return next((kind for start, kind in _OTHERS.items() if first.startswith(start)), "")


def length(first: bytes, file: str, file_bytes: int) -> int:
    """Length of the JSON header in bytes, from the first eight bytes of a file that has `file_bytes` in all."""
    if len(first) < LENGTH_BYTES or file_bytes < LENGTH_BYTES:
        raise _invalid(file, f"it has {file_bytes} bytes, a header needs at least {LENGTH_BYTES}")
    json_fields.refuse_pointer(first, file)
    if (kind := other_kind(first)) and int.from_bytes(first, "little") + LENGTH_BYTES > file_bytes:
        raise MtpforgeError(
            f"`{shown(file)}` is {kind}, not safetensors",
            where=Where(file),
            why="only safetensors are read: pickle runs code, and has no header to read alone",
            fix="name a checkpoint that was published as safetensors",
        )
    (n_bytes,) = struct.unpack_from("<Q", first)
    if n_bytes > MAX_HEADER_BYTES:
        raise _invalid(file, f"its header claims {n_bytes:,} bytes, at most {MAX_HEADER_BYTES:,} are allowed")
    if LENGTH_BYTES + n_bytes > file_bytes:
        raise _invalid(file, f"its header claims {n_bytes:,} bytes, the file ends after {file_bytes:,}")
    return int(n_bytes)


def parse(raw: bytes, file: str, file_bytes: int) -> dict[str, TensorRef]:
    """Where every tensor of a file lies, from the JSON header (without the eight bytes before it).

    file_bytes: size of the whole file; offsets of the refs count from its first byte. Names are `plain`. Every
    invalidity is a MtpforgeError that names file, tensor and cause.
    """
    data_start = LENGTH_BYTES + len(raw)
    entries = _load(raw, file)
    _check_metadata(entries.pop(METADATA, None), file)
    if len(entries) > MAX_TENSORS:
        raise _invalid(file, f"it lists {len(entries):,} tensors, at most {MAX_TENSORS:,} are allowed")
    refs = [_ref(name, entry, file, data_start, file_bytes) for name, entry in entries.items()]
    _check_cover(refs, file, data_start, file_bytes)
    named = {ref.name: ref for ref in refs}
    if len(named) < len(refs):
        twice = Counter(ref.name for ref in refs).most_common(1)[0][0]
        raise _invalid(file, f"it holds the tensor twice, once below `{WITHIN}`", twice)
    return named


def _load(raw: bytes, file: str) -> dict[str, object]:
    if not raw.startswith(b"{"):
        raise _invalid(file, "its header does not begin with `{`")
    # counted before anything is made of them: an empty list takes 28 times its text
    for sign, most in _MOST_SIGNS.items():
        if (n := raw.count(sign)) > most:
            raise _invalid(file, f"its header has {n:,} times `{sign.decode()}`, at most {most:,} are allowed")
    try:
        value: object = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_once, parse_int=_whole, parse_float=_no_number,
            parse_constant=_no_number,
        )  # fmt: skip
    except RecursionError:
        raise _invalid(file, "its header is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise _invalid(file, f"its header is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise _invalid(file, f"its header is not valid JSON: {shown(error)}") from None
    assert isinstance(value, dict)  # noqa: S101  # it begins with a brace
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r} appears twice")
    return values


def _whole(digits: str) -> int:
    if digits == "-0":  # the library reads no sign before a whole number
        raise ValueError("negative number -0")
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no whole number")


def _check_metadata(metadata: object, file: str) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid(file, f"`{METADATA}` must map strings to strings")


def odd_name(name: str) -> str:
    """Why a tensor may not be called so, "" where it may."""
    if not name or len(name) > MAX_NAME_CHARACTERS:
        return f"a name has {len(name)} characters, 1 to {MAX_NAME_CHARACTERS} are allowed"
    return "" if name.isprintable() else "a name holds control characters"


def _ref(name: str, entry: object, file: str, data_start: int, file_bytes: int) -> TensorRef:
    if why := odd_name(name):
        raise _invalid(file, why, name)
    if not isinstance(entry, dict):
        raise _invalid(file, "its entry is no object", name)
    spec = _spec(entry.get("dtype"), entry.get("shape"), file, name)
    match entry.get("data_offsets"):
        case [int(start), int(stop)] if type(start) is int and type(stop) is int:
            pass
        case other:
            raise _invalid(file, f"data_offsets must be two whole numbers, they are {shown(brief(other))}", name)
    if start < 0:
        raise _invalid(file, f"its data begins before the file, at {start:,}", name)
    if start > stop:
        raise _invalid(file, f"its data begins at {start:,} and ends before, at {stop:,}", name)
    if data_start + stop > file_bytes:
        end = data_start + stop
        raise _invalid(file, f"its data ends at byte {end:,}, the file at {file_bytes:,}: the file is cut short", name)
    if stop - start != spec.n_bytes:
        raise _invalid(file, f"{spec} takes {spec.n_bytes:,} bytes, its data has {stop - start:,}", name)
    return TensorRef(plain(name), spec, file, data_start + start, data_start + stop)


def _spec(dtype: object, dimensions: object, file: str, name: str) -> Spec:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _invalid(file, f"unknown dtype {shown(brief(dtype))}", name)
    if isinstance(dimensions, list) and len(dimensions) > MAX_DIMENSIONS:
        raise _invalid(file, f"it has {len(dimensions)} dimensions, at most {MAX_DIMENSIONS} are allowed", name)
    if not isinstance(dimensions, list) or not all(type(n) is int for n in dimensions):
        raise _invalid(file, f"shape must be a list of whole numbers, it is {shown(brief(dimensions))}", name)
    if any(n < 0 for n in dimensions):
        raise _invalid(file, f"its shape has a negative number: {shown(brief(dimensions))}", name)
    shape: Shape = tuple(dimensions)
    bits = DTYPES[dtype].bits
    for n in shape:  # the product without zeros: readers that multiply in order overflow before they meet a zero
        bits *= max(n, 1)
        if bits > MAX_BITS:
            raise _invalid(file, f"{shown(dtype)} {shown(dimensions)} overflows", name)
    spec = Spec(dtype, shape)
    if spec.count * DTYPES[dtype].bits % 8:
        raise _invalid(file, f"{spec} does not end at a byte", name)
    return spec


def _check_cover(refs: Iterable[TensorRef], file: str, data_start: int, file_bytes: int) -> None:
    expected, last = data_start, ""
    # by stop as well: a tensor without elements begins where its neighbour does, and comes before it
    for ref in sorted(refs, key=lambda r: (r.start, r.stop)):
        if ref.start < expected:
            raise _invalid(file, f"its data overlaps with that of `{shown(last)}`", ref.name)
        if ref.start > expected:
            raise _invalid(file, f"{ref.start - expected:,} bytes before its data belong to no tensor", ref.name)
        expected, last = ref.stop, ref.name
    if expected != file_bytes:
        raise _invalid(file, f"{file_bytes - expected:,} bytes at its end belong to no tensor")


def _invalid(file: str, why: str, tensor: str | None = None) -> MtpforgeError:
    return MtpforgeError(
        f"`{shown(file)}` is not a valid safetensors file",
        where=Where(file, tensor or ""),
        why=why,
        fix="copy or download the file again; compare its size with the published one",
    )
