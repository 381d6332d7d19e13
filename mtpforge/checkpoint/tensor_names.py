"""Names of tensors as a language model alone has them, whatever it is wrapped in.

A model that also sees keeps its language model below `model.language_model.` (transformers 4.52 and later): what is
`model.layers.45.` to families, plans and drafts is `model.language_model.layers.45.` there.
"""

from __future__ import annotations

from typing import Final

WITHIN: Final = "model.language_model."


def plain(name: str) -> str:
    """The name without the wrapping."""
    return f"model.{name.removeprefix(WITHIN)}" if name.startswith(WITHIN) else name
