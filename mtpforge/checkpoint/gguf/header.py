"""The header of a GGUF file, read through a window: only its own bytes are asked for, long lists are passed over.

    4 bytes     "GGUF", then u32 version (2 or 3), i64 tensors, i64 keys; everything is little-endian
    keys        string name, u32 type, value; a list is u32 type of its values, u64 count, the values
    tensors     string name, u32 dimensions, u64 each (the fastest first), u32 type, u64 offset from the data
    padding     to a multiple of `general.alignment`, 32 where it is absent
    data        the tensors in the order of the header, each padded the same

A string is u64 length and UTF-8 text. Never laxer than ggml (gguf.cpp, gguf_init_from_file_impl): a name twice, a row
that does not fill whole blocks, an offset that leaves a gap or none, a list of lists are refused there too. Stricter in
this: counts are bounded before anything is made of them, names are printable, and no tensor is empty.

The gguf package is not asked: its reader maps a whole file, which of a hub repository there is none, and believes every
count and length.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from mtpforge.checkpoint.header import MAX_BITS, MAX_HEADER_BYTES, MAX_TENSORS, odd_name
from mtpforge.checkpoint.json_fields import MAX_VALUES, refuse_pointer
from mtpforge.errors import MtpforgeError, Where, shown
from mtpforge.ggml import TYPES, GgmlType
from mtpforge.tensors import Shape

# Bytes [start, stop) of the file, fewer at its end, and the size of the whole file.
Piece: TypeAlias = Callable[[int, int], tuple[bytes, int]]

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MAX_KEYS: Final = 10_000  # of published files; the longest have 70
_MAX_KEY_BYTES: Final = 65_535  # GGUF's own limit
_MAX_TEXT_BYTES: Final = 4_096  # of a value that is kept: names and hub ids; chat templates are passed over
_MAX_DIMENSIONS: Final = 4  # GGML_MAX_DIMS
_ALIGNMENT: Final = "general.alignment"
_WINDOWS: Final = (64 << 10, 8 << 20)  # the first one, and the largest that it grows to
_STRING, _LIST, _FLOAT, _BOOL = 8, 9, 6, 7
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class Listed:
    """A list among the keys: its values were passed over."""

    count: int


Value: TypeAlias = "int | float | bool | str | Listed"


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as the file has it. shape: the slowest dimension first, as [out, in]; bytes [start, stop)."""

    name: str
    type: GgmlType
    shape: Shape
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says: keys with their values, and where its tensors lie."""

    values: dict[str, Value]
    tensors: tuple[Stored, ...]


def read(piece: Piece, file: str) -> Header:
    """The header. Whatever is wrong with it is a MtpforgeError that names file, key or tensor, and cause."""
    window = _Window(piece, file)
    _check_start(window)
    n_tensors, n_keys = window.number("q"), window.number("q")
    for what, count, most in (("tensors", n_tensors, MAX_TENSORS), ("keys", n_keys, _MAX_KEYS)):
        if not 0 <= count <= most:
            raise invalid(file, f"it claims {count:,} {what}, at most {most:,} are allowed")
    values = _values(window, n_keys)
    alignment = values.get(_ALIGNMENT, 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise invalid(file, f"`{_ALIGNMENT}` is {shown(alignment)}, no power of two")
    infos = [_info(window) for _ in range(n_tensors)]
    return Header(values, tuple(_placed(infos, window, alignment)))


class _Window:
    """A place in the file, and the bytes around it that were asked for last."""

    def __init__(self, piece: Piece, file: str) -> None:
        self._piece, self.file = piece, file
        self.at, self._start = 0, 0
        self._size = _WINDOWS[0]
        self._held, self.file_bytes = piece(0, self._size)

    def bytes(self, n_bytes: int, of: str) -> bytes:
        """The next bytes; a file that ends before is an error that says of what they are."""
        self.refuse_end(n_bytes, of)
        first = self.at - self._start
        if not 0 <= first <= len(self._held) - n_bytes:
            self._size = min(2 * self._size, _WINDOWS[1])
            stop = min(self.at + max(self._size, n_bytes), self.file_bytes)
            self._held, _ = self._piece(self.at, stop)
            self._start, first = self.at, 0
            if len(self._held) < n_bytes:
                raise invalid(self.file, f"it ends inside {of}, at byte {self.at + len(self._held):,}")
        self.at += n_bytes
        return self._held[first : first + n_bytes]

    def skip(self, n_bytes: int, of: str) -> None:
        """Go on behind the next bytes; they are not asked for."""
        self.refuse_end(n_bytes, of)
        self.at += n_bytes

    def skip_texts(self, count: int, of: str) -> None:
        """Go on behind so many strings; of a tokenizer there are half a million."""
        held, place = self._held, self.at - self._start
        for _ in range(count):
            if not 0 <= place <= len(held) - 8:
                self.at = self._start + place
                self.bytes(8, of)
                held, place = self._held, self.at - 8 - self._start
            place += 8 + int.from_bytes(held[place : place + 8], "little")
        self.at = self._start + place
        self.refuse_end(0, of)

    def number(self, code: str, of: str = "its header") -> int:
        """A whole number, by its letter in `struct`."""
        (value,) = struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}"), of))
        return int(value)

    def text(self, most: int, of: str) -> str:
        """A string of at most so many bytes."""
        n_bytes = self.number("Q", of)
        if n_bytes > most:
            raise invalid(self.file, f"{of} claims {n_bytes:,} bytes, at most {most:,} are allowed")
        try:
            return self.bytes(n_bytes, of).decode()
        except UnicodeDecodeError as error:
            raise invalid(self.file, f"{of} is not UTF-8 text: {error.reason}") from None

    def refuse_end(self, n_bytes: int, of: str) -> None:
        """MtpforgeError where so many more bytes are not in the file, or the header would be too long."""
        if self.at + n_bytes > self.file_bytes:
            raise invalid(self.file, f"it ends inside {of}: {self.file_bytes:,} bytes are there; the file is cut short")
        if self.at + n_bytes > MAX_HEADER_BYTES:
            raise invalid(self.file, f"its header has more than {MAX_HEADER_BYTES:,} bytes")


def _check_start(window: _Window) -> None:
    first = window.bytes(min(8, window.file_bytes), "its first bytes")
    refuse_pointer(first, window.file)
    if not first.startswith(_MAGIC):
        raise invalid(window.file, "it does not begin with `GGUF`")
    version = int.from_bytes(first[4:8], "little")
    if len(first) < 8 or version not in _VERSIONS:  # noqa: PLR2004  # the mark and the version
        swapped = int.from_bytes(first[4:8], "big")
        why = f"it is big-endian, version {swapped}" if swapped in _VERSIONS else f"it is of version {version}"
        raise invalid(window.file, f"{why}; little-endian files of versions 2 and 3 are read")


def _values(window: _Window, n_keys: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    left = MAX_VALUES
    for _ in range(n_keys):
        key = window.text(_MAX_KEY_BYTES, "a key")
        if key in values:
            raise invalid(window.file, "the key appears twice", inside=key)
        value = _value(window, key)
        values[key] = value
        left -= value.count if isinstance(value, Listed) else 1
        if left < 0:
            raise invalid(window.file, f"its keys have more than {MAX_VALUES:,} values")
    return values


def _value(window: _Window, key: str) -> Value:
    kind, of = window.number("I"), f"key `{shown(key)}`"
    if kind == _LIST:
        return _list(window, of)
    if kind == _STRING:
        n_bytes = window.number("Q", of)
        if n_bytes > _MAX_TEXT_BYTES:
            window.skip(n_bytes, of)
            return ""
        return window.bytes(n_bytes, of).decode(errors="replace")
    if kind not in _SCALARS:
        raise invalid(window.file, f"{of} has the unknown type {kind}")
    code = _SCALARS[kind]
    (value,) = struct.unpack(f"<{code}", window.bytes(struct.calcsize(f"<{code}"), of))
    if kind == _FLOAT:
        return float(f"{value:.7g}")  # as it was written: 1.8, which float32 has as 1.7999999523
    return bool(value) if kind == _BOOL else value


def _list(window: _Window, of: str) -> Listed:
    kind, count = window.number("I", of), window.number("Q", of)
    if count > MAX_VALUES:
        raise invalid(window.file, f"{of} claims {count:,} values, at most {MAX_VALUES:,} are allowed")
    if kind == _STRING:
        window.skip_texts(count, of)
    elif kind in _SCALARS:
        window.skip(count * struct.calcsize(f"<{_SCALARS[kind]}"), of)
    else:
        why = "lists of lists, which ggml takes for damage" if kind == _LIST else f"values of the unknown type {kind}"
        raise invalid(window.file, f"{of} has {why}")
    return Listed(count)


def _info(window: _Window) -> tuple[Stored, int]:
    """One tensor, not yet placed, and its offset."""
    name = window.text(_MAX_KEY_BYTES, "the name of a tensor")
    if why := odd_name(name):
        raise invalid(window.file, why, name)
    of = f"the entry of tensor `{shown(name)}`"
    n_dimensions = window.number("I", of)
    if n_dimensions > _MAX_DIMENSIONS:
        raise invalid(window.file, f"it has {n_dimensions} dimensions, at most {_MAX_DIMENSIONS} are allowed", name)
    fastest_first = [window.number("Q", of) for _ in range(n_dimensions)]
    number, offset = window.number("I", of), window.number("Q", of)
    if number not in TYPES:
        raise invalid(window.file, f"its type is number {number}, which is unknown", name)
    stored_as = TYPES[number]
    if not all(fastest_first) or math.prod(fastest_first) > MAX_BITS // (8 * stored_as.n_bytes):
        raise invalid(window.file, f"its sizes are {fastest_first}", name)
    columns = fastest_first[0] if fastest_first else 1
    if columns % stored_as.block:
        why = f"rows of {columns:,} numbers do not fill blocks of {stored_as.block} ({stored_as.name})"
        raise invalid(window.file, why, name)
    return Stored(name, stored_as, tuple(reversed(fastest_first)), 0, 0), offset


def _placed(infos: list[tuple[Stored, int]], window: _Window, alignment: int) -> list[Stored]:
    """Every tensor with its place in the file."""
    data = -(-window.at // alignment) * alignment
    expected, found, names = 0, [], set()
    for stored, offset in infos:
        if stored.name in names:
            raise invalid(window.file, "it holds the tensor twice", stored.name)
        names.add(stored.name)
        if offset != expected:
            raise invalid(window.file, f"its data is said to begin at {offset:,}, it must at {expected:,}", stored.name)
        n_bytes = math.prod(stored.shape) // stored.type.block * stored.type.n_bytes
        start = data + offset
        if start + n_bytes > window.file_bytes:
            end = start + n_bytes
            why = f"its data ends at byte {end:,}, the file at {window.file_bytes:,}: the file is cut short"
            raise invalid(window.file, why, stored.name)
        found.append(Stored(stored.name, stored.type, stored.shape, start, start + n_bytes))
        expected += -(-n_bytes // alignment) * alignment
    return found


def invalid(file: str, why: str, tensor: str = "", *, inside: str = "") -> MtpforgeError:
    """The error for a file that is no GGUF, or a damaged one."""
    return MtpforgeError(
        f"`{shown(file)}` is not a valid GGUF file",
        where=Where(file, tensor, inside=shown(inside)),
        why=why,
        fix="copy or download the file again; compare its size with the published one",
    )
