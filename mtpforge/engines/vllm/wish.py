"""What a target's block is to say of the MTP layer and of the model around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mtpforge.engines.vllm.matrices import Asked
from mtpforge.engines.vllm.quantization_block import Layer

Block: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a block is to say: of the layer, `layer`; of the model around it, what it says now.

    attention: vLLM's class of it. asked: the questions about the layer. main: those about the model, and the answers: a
    Quantization, or a refusal.
    """

    layer: Layer
    attention: str
    asked: tuple[Asked, ...]
    main: Mapping[Asked, object]

    @property
    def quantized(self) -> tuple[Asked, ...]:
        """The questions about the layer whose answer must not be dense."""
        return tuple(a for a in self.asked if not self.layer.stored[a.templates[0]].is_dense)
