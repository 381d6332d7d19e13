"""Engines: the table by key. An engine is one file or folder and one line here."""

from __future__ import annotations

from typing import Final

from mtpforge import errors
from mtpforge.engines.engine import Engine, Serving
from mtpforge.engines.sglang import SGLANG
from mtpforge.engines.standalone import standalone
from mtpforge.engines.vllm import VLLM
from mtpforge.errors import MtpforgeError, shown

__all__ = ["DEFAULT", "ENGINES", "Engine", "Serving", "engine_of", "named"]

ENGINES: Final[dict[str, Engine]] = {"vllm": VLLM, "sglang": SGLANG}
DEFAULT: Final = next(iter(ENGINES))
_ALONE: Final = standalone(ENGINES.values())


def engine_of(key: str) -> Engine:
    """The engine of a key; "" stands for none, a layer on its own."""
    if key and key not in ENGINES:
        raise MtpforgeError(f"no engine `{shown(key)}`", why=f"known: {', '.join(ENGINES)}", code=errors.USAGE)
    return ENGINES[key] if key else _ALONE


def named(key: str) -> list[str]:
    """The words by which a command that is proposed names an engine: none for the default."""
    return [] if key in ("", DEFAULT) else ["--engine", key]
