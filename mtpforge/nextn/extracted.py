"""windows_of(): what a running vLLM stored of its hidden states, as windows that the last layers go on from.

    <request>.safetensors     one request: its prompt's tokens
        hidden_states         BF16 (dtype of the model)  [n_tokens, layers asked for, hidden]
        token_ids             I64                        [n_tokens]
    <request>.safetensors.lock

Source: vLLM 0.33.0, distributed/kv_transfer/kv_connector/v1/example_hidden_states_connector.py. The states of "layer" N
are the residual stream before layer N: models/deepseek_v32/{nvidia,amd}/model.py, which GLM-5.2 runs in, take them at
the head of the loop over layers. They have no state for the end of the last layer, so its output cannot be asked for
(the generic class, model_executor/models/deepseek_v2.py, has one). Hence the last layers are computed here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge.checkpoint import header
from mtpforge.checkpoint.folder_files import Files
from mtpforge.errors import MtpforgeError, shown
from mtpforge.nextn.capturing import Entering
from mtpforge.nextn.sequences import HIDDEN, TOKENS, odd_rows
from mtpforge.nextn.target import Target
from mtpforge.tensors import TensorRef
from mtpforge.weights import Reader

if TYPE_CHECKING:
    from torch import Tensor

_FLOATS: Final = ("BF16", "F16", "F32")


def windows_of(folder: Path, target: Target, most: int) -> list[Entering]:
    """The requests of a folder in name order, whole ones, at most `most` tokens in all; states before `target.entry`.

    MtpforgeError where a file is cut short, holds other tensors, or is of another model.
    """
    names = sorted(path.name for path in folder.glob("*.safetensors")) if folder.is_dir() else []
    if not names:
        raise MtpforgeError(
            "there are no stored hidden states",
            where=shown(folder),
            why="an engine stores one *.safetensors file a request",
            fix="docs/calibration.md has the server's command",
        )
    files, found = Files(Path(os.path.realpath(folder))), list[Entering]()
    for name in names:
        window = _window(files, name, target)
        most -= len(window.token_ids)
        if most < 0:
            break
        found.append(window)
    if not found:
        fix = "raise `--tokens`, or send shorter prompts"
        raise MtpforgeError(
            "the first request has more tokens than may be used", where=shown(folder / names[0]), fix=fix
        )
    return found


def _window(files: Files, name: str, target: Target) -> Entering:
    refs = _refs(files, name, target.config.hidden_size)
    states = _tensor(files, refs[HIDDEN])[:, 0].float()
    token_ids = _tensor(files, refs[TOKENS])
    if not bool(states.isfinite().all()):
        raise _odd(files, name, "it holds values that are no numbers")
    why, _ = odd_rows(token_ids, token_ids.new_zeros(1), target.config.vocab_size)
    if why:
        raise _odd(files, name, why)
    return Entering(token_ids, states)


def _refs(files: Files, name: str, hidden_size: int) -> dict[str, TensorRef]:
    """Where the two tensors lie, their layout checked."""
    size = files.size(name)
    n_bytes = header.length(files.piece(name, header.LENGTH_BYTES, 0), name, size)
    refs = header.parse(files.piece(name, n_bytes, header.LENGTH_BYTES), name, size)
    if set(refs) != {HIDDEN, TOKENS}:
        raise _odd(files, name, f"it holds {len(refs)} tensors, not `{HIDDEN}` and `{TOKENS}`")
    states, token_ids = refs[HIDDEN].spec, refs[TOKENS].spec
    n = token_ids.shape[0] if token_ids.shape else 0
    if token_ids.dtype != "I64" or token_ids.shape != (n,) or not n:
        raise _odd(files, name, f"`{TOKENS}` is {token_ids}, not I64 [tokens]")
    if states.dtype not in _FLOATS or states.shape != (n, 1, hidden_size):
        raise _odd(files, name, f"`{HIDDEN}` is {states}; one layer of {n} tokens is BF16 [{n}, 1, {hidden_size}]")
    return refs


def _tensor(files: Files, ref: TensorRef) -> Tensor:
    def read(ref: TensorRef, into: memoryview) -> None:
        if files.fill(ref.file, into, ref.start) < len(into):
            raise _odd(files, ref.file, "it is cut short")

    return Reader(read).tensor(ref)


def _odd(files: Files, name: str, why: str) -> MtpforgeError:
    return MtpforgeError(
        "a file holds no hidden states of this target",
        where=shown(files.folder / name),
        why=why,
        fix="remove it, or start the server as docs/calibration.md says",
    )
