"""Models in GGUF, which llama.cpp runs: read, as sources of a draft.

choosing     which files are one model
header       where its tensors lie, and its keys
names        the family's names for them, and fields of config.json
checkpoint   Gguf: all of it as a Checkpoint
"""

from __future__ import annotations

from mtpforge.checkpoint.gguf.checkpoint import Gguf, Holder
from mtpforge.checkpoint.gguf.choosing import SUFFIX, chosen, is_all

__all__ = ["SUFFIX", "Gguf", "Holder", "chosen", "is_all"]
