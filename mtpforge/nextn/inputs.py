"""Calibration inputs: one safetensors file with what a target hands to its MTP layer. Layout: `sequences.py`.

read(path)                       Inputs, checked; iteration reads one sequence at a time
write(path, sequences, ...)      a new file, whole or not at all
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mtpforge.checkpoint import header, json_fields
from mtpforge.checkpoint.folder_files import Files
from mtpforge.errors import MtpforgeError, shown
from mtpforge.nextn.recording import write
from mtpforge.nextn.sequences import (
    DTYPES_OF,
    FORMAT,
    HIDDEN,
    POSITIONS,
    STARTS,
    TOKENS,
    Sequence,
    invalid,
    odd_rows,
    overflowing,
)
from mtpforge.tensors import DTYPES, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Inputs", "Sequence", "read", "write"]

MAX_SEQUENCES: Final = 1 << 20
MAX_SEQUENCE_TOKENS: Final = 1 << 20  # GLM-5.2's max_position_embeddings; one sequence is held in memory
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Inputs:
    """An inputs file whose layout was checked; iteration reads one sequence at a time.

    target: what it was captured from, "" where the file does not say. starts: first row of every sequence, and the
    number of rows.
    """

    path: Path
    n_tokens: int
    n_sequences: int
    hidden_size: int
    target: str
    starts: tuple[int, ...] = field(repr=False)
    _files: Files = field(repr=False, compare=False)
    _refs: dict[str, TensorRef] = field(repr=False, compare=False)

    @property
    def digest(self) -> str:
        """sha256 of the file in hex, for manifests; reads all of it."""
        found = hashlib.sha256()
        name, at = _name(self.path), 0
        while piece := self._files.piece(name, _PIECE_BYTES, at):
            found.update(piece)
            at += len(piece)
        return found.hexdigest()

    def refuse_beyond(self, most: int) -> None:
        """MtpforgeError where a position is not below `max_position_embeddings` of the model that the inputs are for.

        Not for `read`: a file may be older than the choice of the model.
        """
        for first, last in pairwise(self.starts):
            highest = int(self._rows(POSITIONS, last - 1, last))
            if highest >= most:
                why = f"`max_position_embeddings` of the model is {most:,}"
                raise invalid(self.path, f"rows {first:,} to {last:,} reach position {highest:,}, {why}", POSITIONS)

    def __iter__(self) -> Iterator[Sequence]:
        """Sequences in the file's order. Hidden states that are no numbers, or have no norm, are an MtpforgeError."""
        for first, last in pairwise(self.starts):
            hidden = self._rows(HIDDEN, first, last).float()
            if not bool(hidden.isfinite().all()):
                raise invalid(self.path, f"rows {first:,} to {last:,} hold values that are no numbers", HIDDEN)
            if (row := overflowing(hidden)) is not None:
                raise invalid(self.path, f"row {first + row:,} is too large for float32 once it is squared", HIDDEN)
            yield Sequence(self._rows(TOKENS, first, last).long(), self._rows(POSITIONS, first, last).long(), hidden)

    def _rows(self, name: str, first: int, last: int) -> Tensor:
        import torch

        ref = self._refs[name].rows(first, last)
        raw = torch.empty(ref.stop - ref.start, dtype=torch.uint8)
        if self._files.fill(_name(self.path), raw.numpy().data, ref.start) < len(raw):
            raise invalid(self.path, "the file is cut short", name)
        return raw.view(getattr(torch, DTYPES[ref.spec.dtype].torch)).reshape(ref.spec.shape)


def read(path: Path, *, hidden_size: int | None = None, vocab_size: int | None = None) -> Inputs:
    """The inputs of a file: layout, boundaries, token ids and positions checked; hidden states when they are read.

    hidden_size, vocab_size: of the model that they are for, where it is known. Every fault is an MtpforgeError that
    names file, tensor and cause.
    """
    refuse_no_file(path)
    files = Files(Path(os.path.realpath(path)).parent)
    refs, metadata = _header(files, path)
    if (found := metadata.get("format")) != FORMAT:
        why = f"its metadata says format `{shown(found)}`, not `{FORMAT}`" if found else "its metadata names no format"
        raise invalid(path, why)
    n_tokens, hidden = _check_layout(path, refs)
    if hidden_size not in (None, hidden):
        raise invalid(path, f"its hidden states have {hidden:,} columns, the model {hidden_size:,}", HIDDEN)
    target = shown(metadata.get("target", ""))
    whole = Inputs(path, n_tokens, 0, hidden, target, (), files, refs)
    starts = _starts(whole)
    inputs = Inputs(path, n_tokens, len(starts) - 1, hidden, target, starts, files, refs)
    _check_rows(inputs, vocab_size)
    return inputs


def refuse_no_file(path: Path) -> None:
    """MtpforgeError where the name of an inputs file is no file's."""
    is_there = os.path.exists(path)  # noqa: PTH110 -- Path's raises for a name that is too long
    if is_there and path.is_file():
        return
    what = f"there is no inputs file `{shown(path)}`"
    if path == Path():  # also what an empty name becomes
        what = "the name of the inputs file is empty, or `.`"
    elif is_there:
        what = f"`{shown(path)}` is {'a folder' if path.is_dir() else 'no regular file'}, inputs are one regular file"
    fix = "`mtpforge capture --help` says how to make one"
    raise MtpforgeError(what, where=shown(path), fix=fix)


def _name(path: Path) -> str:
    return os.path.basename(os.path.realpath(path))  # noqa: PTH119  # resolve() raises where links lead in a circle


def _header(files: Files, path: Path) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """Where the tensors lie, and the metadata."""
    name, label = _name(path), shown(path)
    size = files.size(name)
    first = files.piece(name, header.LENGTH_BYTES, 0)
    json_fields.refuse_pointer(first, label)
    try:
        n_bytes = header.length(first, label, size)
        raw = files.piece(name, n_bytes, header.LENGTH_BYTES)
        if len(raw) < n_bytes:
            raise invalid(path, "the file is cut short")
        refs = header.parse(raw, label, size)  # also that the metadata maps strings to strings
    except MtpforgeError as error:  # nothing that was published: whoever made it makes it again
        raise invalid(path, f"{error.what}: {error.why}") from None
    return refs, json.loads(raw).get("__metadata__") or {}


def _check_layout(path: Path, refs: dict[str, TensorRef]) -> tuple[int, int]:
    """Names, dtypes and shapes; rows and columns of the hidden states."""
    for name, dtypes in DTYPES_OF.items():
        if name not in refs:
            raise invalid(path, f"it has no tensor `{name}`")
        if refs[name].spec.dtype not in dtypes:
            raise invalid(path, f"it is {refs[name].spec.dtype}, not {' or '.join(dtypes)}", name)
    if more := sorted(set(refs) - set(DTYPES_OF)):
        raise invalid(path, f"it has a tensor `{shown(more[0])}`, which is none of {', '.join(DTYPES_OF)}")
    shapes = {name: ref.spec.shape for name, ref in refs.items()}
    if len(shapes[HIDDEN]) != 2 or 0 in shapes[HIDDEN]:  # noqa: PLR2004  # rows and columns
        raise invalid(
            path, f"its shape is {list(shapes[HIDDEN])}, not [n_tokens, hidden] with at least one row", HIDDEN
        )
    n_tokens, hidden = shapes[HIDDEN]
    for name in (TOKENS, POSITIONS):
        if shapes[name] != (n_tokens,):
            raise invalid(path, f"its shape is {list(shapes[name])}, the hidden states have {n_tokens:,} rows", name)
    if len(shapes[STARTS]) != 1 or not 2 <= shapes[STARTS][0] <= min(n_tokens, MAX_SEQUENCES) + 1:  # noqa: PLR2004
        why = f"its shape is {list(shapes[STARTS])}, not [n_sequences + 1] with 1 to {MAX_SEQUENCES:,} sequences"
        raise invalid(path, why, STARTS)
    return n_tokens, hidden


def _starts(inputs: Inputs) -> tuple[int, ...]:
    """First rows of the sequences and the number of rows, ascending."""
    n = inputs._refs[STARTS].spec.shape[0]  # noqa: SLF001  # its own file
    starts = tuple(int(start) for start in inputs._rows(STARTS, 0, n))  # noqa: SLF001
    lengths = [after - before for before, after in pairwise(starts)]
    if starts[0] != 0 or starts[-1] != inputs.n_tokens or min(lengths) < 1:
        why = f"boundaries must rise from 0 to {inputs.n_tokens:,}, the number of rows; sequences have at least one row"
        raise invalid(inputs.path, why, STARTS)
    if max(lengths) > MAX_SEQUENCE_TOKENS:
        why = f"a sequence has {max(lengths):,} tokens, at most {MAX_SEQUENCE_TOKENS:,} are read"
        raise invalid(inputs.path, why, STARTS)
    return starts


def _check_rows(inputs: Inputs, vocab_size: int | None) -> None:
    """Token ids and positions of every sequence."""
    for first, last in pairwise(inputs.starts):
        why, name = odd_rows(
            inputs._rows(TOKENS, first, last).long(),  # noqa: SLF001
            inputs._rows(POSITIONS, first, last).long(),  # noqa: SLF001
            vocab_size,
        )
        if why:
            raise invalid(inputs.path, f"{why} (rows {first:,} to {last:,})", name)
