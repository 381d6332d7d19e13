"""How SGLang looks a matrix up in the lists of a quantization config.

Source: sglang srt/layers/quantization/compressed_tensors/utils.py, quantization/utils.py (0.5.23).
"""

from __future__ import annotations

from collections.abc import Iterable

from mtpforge.engines.expressions import exact_or_regex


def ignored(name: str, entries: Iterable[str]) -> str | None:
    """The entry by which compressed-tensors leaves a name dense: `re:` from its start, else the name or its end."""
    return next((e for e in entries if exact_or_regex(name, e) or name.endswith(f".{e}")), None)


def targeted(name: str, entries: Iterable[str]) -> str | None:
    """The target that names a matrix: `re:` from its start, else the name."""
    return next((entry for entry in entries if exact_or_regex(name, entry)), None)


def skipped(name: str, entries: Iterable[str]) -> str | None:
    """The entry by which method fp8 leaves a name dense: a whole stretch of its path, with `model.` or without."""
    inside = f".{name}."
    return next((e for e in entries if f".{e.removeprefix('model.').rstrip('.')}." in inside), None)
