"""Regular expressions out of a stranger's config, from the start of a name, as vLLM follows them: with `regex`.

`regex` knows what `re` does not (`[[:digit:]]`), and takes a time limit: some expressions try 2^n ways on n
letters. Source: vllm model_executor/layers/quantization/utils/config_utils.py, quark/utils.py (0.33.0).
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, Final

import regex

from mtpforge.errors import MtpforgeError, Where, shown

MAX_CHARACTERS: Final = 4_096  # of one expression; those of published configs have 478 at most
MAX_REPEATS: Final = 100_000  # counts are unrolled when compiled: a{100}{100}{100} takes 280 MB
MAX_SECONDS: Final = 0.25  # for one name; an honest expression takes microseconds
_LONG: Final = 72  # characters of an entry in a sentence
_COUNT: Final = regex.compile(r"\{(\d+)")


def matches(expression: str, name: str) -> bool:
    """Whether an expression matches a name from its start, not to its end; ValueError says why it cannot."""
    try:
        return _compiled(expression).match(name, timeout=MAX_SECONDS) is not None
    except TimeoutError:
        raise ValueError("it tries so many ways on one name that it would take for ever") from None


def found_in(expression: str, name: str) -> bool:
    """Whether an expression is found anywhere in a name; one that cannot be followed is not."""
    try:
        return _compiled(expression).search(name, timeout=MAX_SECONDS) is not None
    except (TimeoutError, ValueError):
        return False


@functools.lru_cache(maxsize=1024)
def _compiled(expression: str) -> Any:  # noqa: ANN401  regex brings no types
    if len(expression) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(expression)} characters, at most {MAX_CHARACTERS} are allowed")
    if math.prod(max(int(count), 1) for count in _COUNT.findall(expression)) > MAX_REPEATS:
        raise ValueError(f"its counts ask for more than {MAX_REPEATS:,} repeats")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `[[` may mean something else in a later version
            return regex.compile(expression)
    except regex.error as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def quoted(entry: str) -> str:
    """An entry as reasons quote it: expressions that list every layer are cut."""
    text = shown(entry)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def exact_or_regex(name: str, entry: str) -> bool:
    """Whether an entry is the name, or `re:` and an expression that matches from its start (not to its end)."""
    return followed(entry[3:], name, entry) if entry.startswith("re:") else entry == name


def followed(expression: str, name: str, entry: str) -> bool:
    """Whether the expression of an entry matches a name from its start; one that cannot be followed is an error."""
    try:
        return matches(expression, name)
    except ValueError as error:
        raise MtpforgeError(
            f"`{quoted(entry)}` is no regular expression that can be followed",
            where=Where("config.json", inside="quantization_config"),
            why=shown(error),
            fix="correct the entry in that config.json",
        ) from error
