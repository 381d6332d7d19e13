"""How SGLang looks a matrix up in the lists of a quantization config.

Source: sglang srt/layers/quantization/compressed_tensors/utils.py, quantization/utils.py (0.5.23).
"""

from __future__ import annotations

from collections.abc import Iterable

from mtpforge.engines import expressions
from mtpforge.errors import MtpforgeError, Where, shown

_LONG = 72


def quoted(entry: str) -> str:
    """An entry as reasons quote it."""
    text = shown(entry)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def ignored(name: str, entries: Iterable[str]) -> str | None:
    """The entry by which compressed-tensors leaves a name dense: `re:` from its start, else the name or its end."""
    return next((e for e in entries if _fits(name, e) or name.endswith(f".{e}")), None)


def targeted(name: str, entries: Iterable[str]) -> str | None:
    """The target that names a matrix: `re:` from its start, else the name."""
    return next((entry for entry in entries if _fits(name, entry)), None)


def skipped(name: str, entries: Iterable[str]) -> str | None:
    """The entry by which method fp8 leaves a name dense: a whole stretch of its path, with `model.` or without."""
    inside = f".{name}."
    return next((e for e in entries if f".{e.removeprefix('model.').rstrip('.')}." in inside), None)


def _fits(name: str, entry: str) -> bool:
    if not entry.startswith("re:"):
        return entry == name
    try:
        return expressions.matches(entry[3:], name)
    except ValueError as error:
        raise MtpforgeError(
            f"`{quoted(entry)}` is no regular expression that can be followed",
            where=Where("config.json", inside="quantization_config"),
            why=shown(error),
            fix="correct the entry in config.json",
        ) from error
