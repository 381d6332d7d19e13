"""JSON objects read field by field: a wrong type is an error that names file and key.

load(raw, file)       bytes -> Fields, bounded, duplicate keys refused
Fields.text("x")      the value of one key, checked; null counts as absent
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from mtpforge.errors import MtpforgeError, Where, shown

MAX_JSON_BYTES: Final = 100_000_000  # as safetensors' own header limit; an index of 250,000 tensors takes 30 MB

MAX_VALUES: Final = (
    2_000_000  # of one file: an index of 250,000 tensors has as many; each takes up to 100 bytes of memory
)
MAX_DEPTH: Final = 64  # published configs have 6 levels; what prints, compares and copies values calls itself a level
MAX_DIGITS: Final = 64  # of a whole number: products of several can still be printed
_POINTER: Final = b"version "  # https://git-lfs.github.com/spec/v1
_SIGNS: Final = (b",", b"[", b"{")


@dataclass(frozen=True, slots=True)
class Fields:
    """An object of a JSON file. path: keys that lead to it, "" for the whole file."""

    values: Mapping[str, object]
    path: str = ""
    file: str = "config.json"

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def refuse(self, key: str, wanted: str) -> NoReturn:
        """Raise the error for a key whose value is not what it must be."""
        raise MtpforgeError(
            f"`{self._full(key)}` of {shown(self.file)} must be {wanted}",
            where=Where(self.file, inside=f"key {self._full(key)}"),
            why=f"it is {shown(repr(self.values.get(key)))}",
            fix="correct the value, or fetch the file again from where it was published",
        )

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.values.get(key)
        if value is None:
            return default
        return value if isinstance(value, str) else self.refuse(key, "a string")

    def whole(self, key: str) -> int | None:
        """A whole number; None when absent."""
        value = self.values.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        return self.refuse(key, "a whole number")

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key)
        if value is None:
            return default
        return value if isinstance(value, bool) else self.refuse(key, "true or false")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        return self.refuse(key, "a list of strings")

    def pair(self, key: str) -> tuple[int, int] | None:
        """A list of two positive whole numbers; None when absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, list) and [type(item) for item in value] == [int, int] and min(value) > 0:
            return value[0], value[1]
        return self.refuse(key, "a list of two positive whole numbers")

    def within(self, key: str) -> Fields | None:
        """The object under a key; None when absent."""
        value = self.values.get(key)
        if value is None:
            return None
        return Fields(value, self._full(key), self.file) if isinstance(value, dict) else self.refuse(key, "an object")

    def objects(self) -> Iterator[tuple[str, Fields]]:
        """Every key with the object under it; null or anything else under a key is an error."""
        for key in self.values:
            yield key, self.within(key) or self.refuse(key, "an object")

    def _full(self, key: str) -> str:
        return shown(f"{self.path}.{key}" if self.path else key)


def load(raw: bytes, file: str) -> Fields:
    """The object that a JSON file holds. Not JSON, no object, a key twice, too large or too deep: errors."""
    refuse_pointer(raw, file)
    if len(raw) > MAX_JSON_BYTES:
        raise _refused(file, f"it has {len(raw):,} bytes, more than {MAX_JSON_BYTES:,}")
    if (n := sum(raw.count(sign) for sign in _SIGNS)) > MAX_VALUES:
        raise _refused(file, f"it has more than {n:,} values, at most {MAX_VALUES:,} are allowed")
    try:
        value: object = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_int=_whole)
    except UnicodeDecodeError as error:
        raise _refused(file, f"it is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise _refused(file, "it is nested too deeply") from None
    except ValueError as error:
        raise _refused(file, shown(error)) from None
    if not isinstance(value, dict):
        raise _refused(file, "it holds no JSON object")
    if _is_deeper(value, MAX_DEPTH):
        raise _refused(file, f"it is nested too deeply: more than {MAX_DEPTH} levels")
    return Fields(value, file=file)


def refuse_pointer(start: bytes, file: str) -> None:
    """Refuse a file whose first bytes (at least eight) are those of a Git LFS pointer."""
    if start.startswith(_POINTER):
        raise MtpforgeError(
            f"`{shown(file)}` is a Git LFS pointer, not the file itself",
            where=Where(file),
            why="the repository was cloned without Git LFS, which fetches the large files",
            fix="`git lfs pull` in the folder of the checkpoint",
        )


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} appears twice in one object")
    return values


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _is_deeper(value: object, most: int) -> bool:
    """Whether containers lie in containers more than `most` times; no recursion, as the depth is what is in doubt."""
    level = [value]
    for _ in range(most):
        items = (
            item for v in level for item in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())
        )
        level = [item for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _refused(file: str, why: str) -> MtpforgeError:
    return MtpforgeError(
        f"`{shown(file)}` cannot be read as JSON",
        where=Where(file),
        why=why,
        fix="fetch the file again from where it was published",
    )
