"""embedding(): the rows of the token embedding that inputs speak of; the whole matrix of GLM-5.2 is 1.9 GB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.tensors import TensorRef
from mtpforge.weights import Reader

if TYPE_CHECKING:
    from torch import Tensor

_MAIN: Final = "model.embed_tokens.weight"
_OWN: Final = "embed_tokens.weight"  # under the prefix of the layer: the same matrix, where it was stored twice
_FLOATS: Final = frozenset({"BF16", "F16", "F32"})
_MATRIX: Final = 2


class Embeds(Protocol):
    """Whatever has a row for a token."""

    def rows(self, token_ids: Tensor) -> Tensor:
        """Float32 [n, hidden] for int64 [n]."""
        ...


@dataclass(frozen=True, slots=True)
class Embedding:
    """One row a token, [vocabulary, hidden], where it is stored."""

    checkpoint: Checkpoint
    ref: TensorRef

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary, padding counted."""
        return self.ref.spec.shape[0]

    def fetch(self, token_ids: Tensor) -> None:
        """Make the rows of these tokens local."""
        self.checkpoint.fetch(self.ref.rows(first, last) for first, last in _runs(token_ids))

    def rows(self, token_ids: Tensor) -> Tensor:
        """Float32 [n, hidden] of values rounded to BF16, for int64 [n]; the rows are local."""
        import torch

        known, places = torch.unique(token_ids, return_inverse=True)
        reader = Reader(self.checkpoint.read)
        read = [reader.tensor(self.ref.rows(first, last)) for first, last in _runs(known)]
        return torch.cat(read).to(torch.bfloat16).float()[places]


def embedding(source: Checkpoint, target: Checkpoint, hidden_size: int) -> Embedding:
    """The embedding of the source, else the target's, else the copy that the source's layer has of it.

    Many sources hold nothing but the layer, and most layers lack the copy. MtpforgeError where nobody has it, or it is
    not as wide as the layer.
    """
    family = family_of(source.config)
    own = family.prefix(family.layer(source.config)) + _OWN
    for checkpoint, name in ((source, _MAIN), (target, _MAIN), (source, own)):
        if name in checkpoint.names:
            return Embedding(checkpoint, _fitting(checkpoint, name, hidden_size))
    raise MtpforgeError(
        "the token embedding is missing",
        where=f"neither {source.label} nor {target.label} holds `{_MAIN}`",
        why="the MTP layer takes the embedding of the next token beside the hidden state",
        fix="name a source or a target that is a whole checkpoint, or choose without inputs: `--prune-by bias`",
    )


def _fitting(checkpoint: Checkpoint, name: str, hidden_size: int) -> TensorRef:
    ref = checkpoint.locate([name])[name]
    if ref.spec.dtype not in _FLOATS or len(ref.spec.shape) != _MATRIX or ref.spec.shape[1] != hidden_size:
        raise MtpforgeError(
            f"`{name}` is {ref.spec}, plain numbers [tokens, {hidden_size}] are needed",
            where=f"{checkpoint.label}, {shown(ref.file)}",
            fix="name a source or a target of the same model that stores its embedding unquantized",
        )
    return ref


def _runs(token_ids: Tensor) -> list[tuple[int, int]]:
    """Neighbours together: [first, last) in ascending order."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(token_ids.tolist())):
        if runs and runs[-1][1] == number:
            runs[-1] = runs[-1][0], number + 1
        else:
            runs.append((number, number + 1))
    return runs
