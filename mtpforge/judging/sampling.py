"""Which rows are run: whole sequences of a captured file up to a number of tokens, or synthetic ones, marked so."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from mtpforge import errors
from mtpforge.errors import MtpforgeError, shown
from mtpforge.nextn.inputs import Inputs
from mtpforge.nextn.sequences import Sequence
from mtpforge.units import counted

if TYPE_CHECKING:
    from torch import Tensor

_SYNTHETIC_TOKENS: Final = 512
_LENGTH: Final = 128


@dataclass(frozen=True, slots=True)
class Sample:
    """Sequences to run. target: what they were captured from; "" where the file does not say, or they are synthetic."""

    sequences: tuple[Sequence, ...]
    is_synthetic: bool
    target: str = ""
    path: str = ""
    digest: str = ""
    n_stored: int = 0

    @property
    def n_tokens(self) -> int:
        """In all."""
        return sum(len(each.token_ids) for each in self.sequences)

    @property
    def n_rows(self) -> int:
        """Rows that the layer is run on: the last token of a sequence makes none."""
        return self.n_tokens - len(self.sequences)

    def __str__(self) -> str:
        """For people."""
        count = f"{counted(self.n_tokens, 'token')} in {counted(len(self.sequences), 'sequence')}"
        if self.is_synthetic:
            return f"synthetic, {count}: random tokens and states, which no target ever gave"
        some = f", of {self.n_stored:,}" if self.n_stored > self.n_tokens else ""
        return f"{self.path}   {count}{some}"

    def states_ahead(self, ahead: int) -> Tensor:
        """The target's own states of token i + ahead for every row i, float32 [n, hidden]; zeros beyond the end."""
        import torch

        found = []
        for each in self.sequences:
            states = each.hidden[ahead:]
            found.append(torch.cat((states, states.new_zeros(len(each.hidden) - 1 - len(states), states.shape[1]))))
        return torch.cat(found)

    def cut(self, n_rows: int) -> Sample:
        """The first sequences, about so many rows in all; the last one is cut."""
        found, left = [], n_rows
        for each in self.sequences:
            n = min(len(each.token_ids), left + 1)
            if n < 2:  # noqa: PLR2004 -- a token and the next one
                break
            found.append(Sequence(each.token_ids[:n], each.positions[:n], each.hidden[:n]))
            left -= n - 1
        return Sample(tuple(found), self.is_synthetic, self.target, self.path, self.digest, self.n_stored)


def captured(inputs: Inputs, most: int, k: int) -> Sample:
    """Of a file the first sequences, at most `most` tokens, the last one cut; those too short for k steps left out."""
    found, left = [], most
    for each in inputs:
        n = min(len(each.token_ids), left)
        if n > k:
            found.append(Sequence(each.token_ids[:n], each.positions[:n], each.hidden[:n]))
            left -= n
        if left <= k:
            break
    if not found:
        raise _too_short(inputs, most, k)
    return Sample(tuple(found), False, inputs.target, shown(inputs.path), inputs.digest, inputs.n_tokens)


def _too_short(inputs: Inputs, most: int, k: int) -> MtpforgeError:
    """Of sequences too short for k steps, or of too few tokens of longer ones."""
    longest = max(last - first for first, last in pairwise(inputs.starts))
    why, n_steps = f"step {k} predicts from a token {k} places ahead", min(longest, most) - 1
    if longest > k:
        return MtpforgeError(
            f"{counted(most, 'token')} of the inputs leave none for {counted(k, 'step')}",
            where="option `--tokens`",
            why=f"{why}; the file has sequences of up to {longest:,} tokens",
            fix=f"`--tokens {k + 1}` or more" + (f", or `--k {n_steps}`" if n_steps > 0 else ""),
            code=errors.USAGE,
        )
    return MtpforgeError(
        f"no sequence of the inputs is longer than {k} tokens",
        where=shown(inputs.path),
        why=why,
        fix="capture longer sequences"
        + (f", or take fewer steps by `fidelity`: `--k {n_steps}`" if n_steps > 0 else ""),
    )


def synthetic(hidden_size: int, n_tokens: int, most: int) -> Sample:
    """Tokens of equal chance and normal states of size 1, by a fixed seed: the same on every machine."""
    import torch

    made = torch.Generator().manual_seed(0)
    found = []
    for _ in range(max(min(most, _SYNTHETIC_TOKENS) // _LENGTH, 1)):
        ids = torch.randint(n_tokens, (_LENGTH,), generator=made)
        found.append(Sequence(ids, torch.arange(_LENGTH), torch.randn(_LENGTH, hidden_size, generator=made)))
    return Sample(tuple(found), True)
