"""Engines: the table by key. An engine is one file or folder and one line here."""

from __future__ import annotations

from typing import Final

from mtpforge import errors
from mtpforge.engines.engine import Engine, Serving
from mtpforge.engines.sglang import SGLANG
from mtpforge.engines.standalone import standalone
from mtpforge.engines.together import together
from mtpforge.engines.vllm import VLLM
from mtpforge.errors import MtpforgeError, shown

__all__ = ["CHOICES", "DEFAULT", "ENGINES", "Engine", "Serving", "engine_of", "named"]

ENGINES: Final[dict[str, Engine]] = {"vllm": VLLM, "sglang": SGLANG}
DEFAULT: Final = next(iter(ENGINES))
_ALONE: Final = standalone(ENGINES.values())
_BY_KEY: Final[dict[str, Engine]] = {**ENGINES, "both": together(VLLM, SGLANG), "": _ALONE}
CHOICES: Final = tuple(filter(None, _BY_KEY))


def engine_of(key: str) -> Engine:
    """The engine of a key; "both" stands for one draft that both take, "" for none, a layer on its own."""
    if key not in _BY_KEY:
        raise MtpforgeError(f"no engine `{shown(key)}`", why=f"known: {', '.join(CHOICES)}", code=errors.USAGE)
    return _BY_KEY[key]


def named(key: str) -> list[str]:
    """The words by which a command that is proposed names an engine: none for the default."""
    return [] if key in ("", DEFAULT) else ["--engine", key]
