"""build(): runs a plan. Reads, decodes, encodes, writes, checks; the draft appears whole or not at all."""

from __future__ import annotations

from mtpforge.building.building import Draft, build

__all__ = ["Draft", "build"]
