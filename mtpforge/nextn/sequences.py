"""What an inputs file holds: names, dtypes, and the rows of one sequence.

    hidden_states     BF16 or F32  [n_tokens, hidden]   the target's last layer, after the final norm
    token_ids         I64 or I32   [n_tokens]
    positions         I64 or I32   [n_tokens]           within a sequence each is the one before plus one
    sequence_starts   I64 or I32   [n_sequences + 1]    first 0, last n_tokens: sequence i is starts[i] to starts[i + 1]

    __metadata__      format: "mtpforge-inputs-1"; target: what it was captured from

Rows of one sequence attend to each other, rows of two never do. Nothing else is in the file: a tensor that is not in
this table is refused, so that no reader can understand it in another way. docs/calibration.md says how to fill one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from torch import Tensor

FORMAT: Final = "mtpforge-inputs-1"
HIDDEN: Final = "hidden_states"
TOKENS: Final = "token_ids"
POSITIONS: Final = "positions"
STARTS: Final = "sequence_starts"
_WHOLE: Final = ("I64", "I32")
_ROWS: Final = 1024  # that are squared at a time
DTYPES_OF: Final = {HIDDEN: ("BF16", "F32"), TOKENS: _WHOLE, POSITIONS: _WHOLE, STARTS: _WHOLE}


@dataclass(frozen=True, slots=True)
class Sequence:
    """Rows that attend to each other.

    token_ids: int64 [n]. positions: int64 [n]. hidden: float32 [n, hidden], the target's final-normed states.
    """

    token_ids: Tensor
    positions: Tensor
    hidden: Tensor


def invalid(path: Path, why: str, tensor: str = "") -> MtpforgeError:
    """The error for a file that is none of ours, or would be none."""
    where = f"{shown(path)}, tensor {tensor}" if tensor else shown(path)
    fix = "make it again with `mtpforge capture`, or as docs/calibration.md says"
    return MtpforgeError("the file holds no calibration inputs", where=where, why=why, fix=fix)


def overflowing(hidden: Tensor) -> int | None:
    """The first row, float32 [n, hidden], that a norm makes zeros of: its squares add up beyond float32. None if none.

    A row of zeros is fine. Of transformers' and vLLM's norms alike: x * rsqrt(mean(x * x) + eps) in float32.
    """
    import torch

    for number, some in enumerate(torch.split(hidden, _ROWS)):
        odd = (~some.square().mean(-1).isfinite()).nonzero()
        if len(odd):
            return number * _ROWS + int(odd[0])
    return None


def odd_rows(token_ids: Tensor, positions: Tensor, vocab_size: int | None = None) -> tuple[str, str]:
    """What is wrong with the rows of one sequence, and the tensor; ("", "") where nothing is."""
    lowest, highest = int(token_ids.min()), int(token_ids.max())
    if lowest < 0:
        return f"token id {lowest} is negative", TOKENS
    if vocab_size is not None and highest >= vocab_size:
        return f"token id {highest:,} lies beyond the vocabulary of {vocab_size:,}", TOKENS
    if int(positions.min()) < 0 or bool((positions[1:] != positions[:-1] + 1).any()):
        return "positions must begin at 0 or later and rise by one within a sequence", POSITIONS
    return "", ""
