"""How many tokens of a draft the tiny target accepts, by the product's own measure: what benchmarks share.

`windows` alternates the parts of a text; every figure is one of a window, so that drafts can be compared in pairs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mtpforge.checkpoint import open_checkpoint
from mtpforge.judging import acceptance
from mtpforge.judging.acceptance import Beside, Text
from mtpforge.nextn import layer as layers
from mtpforge.nextn.embedding import embedding
from mtpforge.nextn.heads import head_of
from mtpforge.nextn.layer import Block
from mtpforge.nextn.speculating import steps
from mtpforge.nextn.target import open_target
from mtpforge.nextn.whole import drawn, whole


class Target:
    """The model that is served, in memory."""

    def __init__(self, folder: Path) -> None:
        opened = open_target(open_checkpoint(str(folder)))
        self.checkpoint, self.n_experts, width = opened.checkpoint, opened.n_experts, opened.config.hidden_size
        self.head = head_of(opened.checkpoint, hidden_size=width)
        self.embedding = embedding(opened.checkpoint, opened.checkpoint, width)
        self._whole = whole(opened, self.head)

    def states(self, ids: Tensor) -> Tensor:
        """Final-normed hidden states, float32 [windows, tokens, hidden]."""
        return self._whole.states(ids)

    def sampled(self, prompts: Tensor, count: int) -> Tensor:
        """The prompts with `count` tokens more, drawn at temperature 1 by a fixed seed."""
        return self._whole.continued(prompts, count, drawn(1.0, 0))

    def beside(self, k: int) -> Beside:
        """What drafts of k steps are measured with."""
        return Beside(self.embedding, self.head, k)


def draft_of(folder: Path) -> Block:
    """The MTP layer of a checkpoint."""
    return layers.block(open_checkpoint(str(folder)))


def windows(folder: Path, text: str, size: int) -> Tensor:
    """Token ids [n, size] of the text; its parts (form feeds) alternate."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.encode(part).ids for part in text.split("\f")]
    rows = [[part[n : n + size] for n in range(0, len(part) - size + 1, size)] for part in ids]
    return torch.tensor([row for group in zip(*rows, strict=False) for row in group])


def first_step(target: Target, draft: Block, ids: Tensor, states: Tensor) -> Tensor:
    """Acceptance of the first drafted token at temperature 1, on the text itself, every position: [windows]."""
    (step,) = steps(draft, target.embedding, Text(ids, states, 1).windows, 1)
    own = step.states.view(len(ids), -1, states.shape[-1])
    found = []
    for theirs, drafted in zip(states[:, 1:], own, strict=True):
        p, q = (each.softmax(-1) for each in target.head.logits([theirs, drafted]))
        found.append(torch.minimum(p, q).sum(-1).mean())
    return torch.stack(found)


def mean_length(target: Target, draft: Block, ids: Tensor, states: Tensor, prompt: int, k: int) -> Tensor:
    """Tokens a cycle of k steps, the target's own counted, on what it drew after `prompt`: [windows]."""
    return acceptance.sampled([draft], target.beside(k), Text(ids, states, prompt), 1.0)[0].length
