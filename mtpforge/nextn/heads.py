"""head_of(): the language head of a target, a block of its rows at a time; GLM-5.2's is 1.9 GB of BF16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mtpforge import formats
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.families.family import Module
from mtpforge.nextn.threads import in_order
from mtpforge.sourcing import StoredModule, recognised
from mtpforge.weights import Reader
from mtpforge.weights.compiling import kernels_for

if TYPE_CHECKING:
    from torch import Tensor

    from mtpforge.weights.kernels import RowKernels

_MAIN: Final = "lm_head"
_TIED: Final = "model.embed_tokens"
_OWN: Final = "shared_head.head"  # under the prefix of the layer: the same matrix, where it was stored twice
_BLOCK: Final = 4096  # rows that are decoded at a time: 96 MiB of float32 for 6,144 columns


@dataclass(frozen=True, slots=True)
class Head:
    """One row a token, [vocabulary, hidden], where it is stored."""

    checkpoint: Checkpoint
    stored: StoredModule
    kernels: Callable[[], RowKernels | None]

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary, padding counted."""
        return self.stored.module.shape[0]

    def fetch(self) -> None:
        """Make it local."""
        self.checkpoint.fetch(self.stored.weight_parts.values())

    def logits(self, states: list[Tensor], workers: int = 1) -> list[Tensor]:
        """Float32 [n, vocabulary] of each of these states, float32 [n, hidden]; the head is in BF16 values."""
        import torch

        n_rows, hidden = [len(each) for each in states], torch.cat(states)
        found = torch.empty(len(hidden), self.n_tokens)
        weight = self.stored.weight(Reader(self.checkpoint.read)).open()

        def write(first: int) -> None:
            last = min(first + _BLOCK, self.n_tokens)
            block = weight.band(first, last).decoded(self.kernels())
            torch.mm(hidden, block.to(torch.bfloat16).float().t(), out=found[:, first:last])

        for _ in in_order(write, range(0, self.n_tokens, _BLOCK), workers):
            pass
        return list(torch.split(found, n_rows))


def head_of(*checkpoints: Checkpoint, hidden_size: int) -> Head:
    """The head of the first of these checkpoints that has one; the copy that a layer has of it comes last.

    MtpforgeError where nobody has it, or it is not as wide as the layer.
    """
    for checkpoint, stem in (
        *((each, _stem(each)) for each in checkpoints),
        *((each, _own(each)) for each in checkpoints),
    ):
        names = [name for name in checkpoint.names if stem and formats.split(name)[0] == stem]
        if names:
            parts = {formats.split(name)[1]: ref for name, ref in checkpoint.locate(sorted(names)).items()}
            stored = recognised(checkpoint, _module(checkpoint, stem, hidden_size), parts, what=f"`{stem}`")
            n_weights = stored.module.shape[0] * hidden_size
            return Head(checkpoint, stored, kernels_for(n_weights))
    labels = " nor ".join(shown(each.label) for each in checkpoints)
    raise MtpforgeError(
        "the language head is missing",
        where=f"neither {labels} holds `{_MAIN}.weight`",
        why="what a draft predicts is what the head of its target makes of its hidden states",
        fix="name the target, a whole checkpoint: `--target CKPT`",
    )


def _stem(checkpoint: Checkpoint) -> str:
    text = family_of(checkpoint.config).text(checkpoint.config)
    return _TIED if text.get("tie_word_embeddings") is True else _MAIN


def _own(checkpoint: Checkpoint) -> str:
    family = family_of(checkpoint.config)
    return family.prefix(family.layer(checkpoint.config)) + _OWN


def _module(checkpoint: Checkpoint, stem: str, hidden_size: int) -> Module:
    vocab_size = family_of(checkpoint.config).text(checkpoint.config).get("vocab_size")
    if type(vocab_size) is not int or vocab_size < 1:
        raise MtpforgeError(
            f"`vocab_size` is {shown(repr(vocab_size))}",
            where=f"{shown(checkpoint.label)}, config.json",
            why="it is the number of rows of the head",
            fix="correct config.json, as the published base model states it",
        )
    return Module(stem, stem, "head", (vocab_size, hidden_size))
