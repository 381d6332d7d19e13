"""Engines: the table by name. An engine is one file or folder and one line here."""

from __future__ import annotations

from typing import Final

from mtpforge.engines.engine import Engine, Serving
from mtpforge.engines.vllm import VLLM

__all__ = ["ENGINES", "Engine", "Serving"]

ENGINES: Final[dict[str, Engine]] = {"vllm": VLLM}
