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

__all__ = ["DEFAULT", "ENGINES", "Engine", "Serving", "choices", "engine_of", "named"]

ENGINES: Final[dict[str, Engine]] = {"vllm": VLLM, "sglang": SGLANG}
DEFAULT: Final = next(iter(ENGINES))
_BOTH: Final = "both"
_PAIR: Final = ("vllm", "sglang")
_MADE_OF_THEM: Final[dict[str, Engine]] = {
    _BOTH: together(*(ENGINES[key] for key in _PAIR)),
    "": standalone(ENGINES.values()),
}


def choices() -> tuple[str, ...]:
    """What `--engine` takes."""
    return (*ENGINES, _BOTH)


def engine_of(key: str) -> Engine:
    """The engine of a key; "both" stands for one draft that both take, "" for none, a layer on its own."""
    found = ENGINES.get(key) or _MADE_OF_THEM.get(key)
    if found is None:
        raise MtpforgeError(f"no engine `{shown(key)}`", why=f"known: {', '.join(choices())}", code=errors.USAGE)
    return found


def behind(key: str) -> tuple[str, ...]:
    """Keys of the engines that a key stands for, in the order of their commands."""
    return (key,) if key in ENGINES else _PAIR if key else ()


def named(key: str) -> list[str]:
    """The words by which a command that is proposed names an engine: none for the default."""
    return [] if key in ("", DEFAULT) else ["--engine", key]
