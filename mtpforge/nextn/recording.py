"""write(): an inputs file from sequences, one at a time, under its final name only once it is whole and durable.

    16 kB header     padded with spaces; written last, when the number of rows is known
    hidden_states    row by row as they come
    the others       8 bytes a row, kept in memory until then

The file grows as `.<name>.mtpforge-tmp` beside the destination, locked; a killed writer leaves only that, and the next
one starts it afresh.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from mtpforge import errors
from mtpforge.durable import effects, files
from mtpforge.durable.refusing import Words, refusals
from mtpforge.errors import MtpforgeError, shown
from mtpforge.nextn.sequences import FORMAT, HIDDEN, POSITIONS, STARTS, TOKENS, Sequence, invalid, odd_rows, overflowing
from mtpforge.tensors import DTYPES, Spec
from mtpforge.units import file_size

if TYPE_CHECKING:
    from torch import Tensor

_HEADER_BYTES: Final = 16 << 10  # four tensors and two short texts take 600
_ALIGNED: Final = 8  # bytes; so that the whole numbers after the hidden states can be used where they lie
_WORDS: Final = Words(
    full="the disk is full",
    make_room="choose another place with `--out`",
    refused="cannot write the inputs file",
    choose="choose another place with `--out`",
)


def write(
    path: Path,
    sequences: Iterable[Sequence],
    *,
    target: str,
    dtype: Literal["BF16", "F32"] = "BF16",
    force: bool = False,
) -> None:
    """Write an inputs file; a complete one is durable under `path`, else there is none.

    sequences: as `Sequence` says; hidden states are rounded to nearest where dtype is BF16. target: what they were
    captured from, a line for people. An existing file is an MtpforgeError unless `force`; rows that `read` would
    refuse are one too, and leave nothing under `path`.
    """
    refuse_existing(path, force=force)
    with refusals(path, _WORDS):
        files.make_folder(path.absolute().parent)
        with _beside(path) as (fd, temporary):
            _fill(fd, path, sequences, target, dtype)
            effects.sync(fd)
            refuse_existing(path, force=force)
            files.take_place(temporary, path)


def refuse_existing(path: Path, *, force: bool = False) -> None:
    """Refuse a destination that must not be replaced, or that no file can have."""
    if path.is_dir() or path.is_symlink() or (path.exists() and not path.is_file()):
        is_folder = path.is_dir() and not path.is_symlink()
        inside = shlex.quote(str(path / "inputs.safetensors"))
        raise MtpforgeError(
            "the output is no plain file",
            where=shown(path),
            why="it is a folder" if is_folder else "it is a link" if path.is_symlink() else "it is a device or a pipe",
            fix=f"name a file in it: `--out {shown(inside)}`" if is_folder else "name another with `--out`",
            code=errors.MACHINE,
        )
    if not force and os.path.lexists(path):
        fix = "`--force` replaces it; `--out` names another"
        raise MtpforgeError("the output exists already", where=shown(path), fix=fix, code=errors.MACHINE)
    if path.exists() and _metadata(path).get("format") != FORMAT:
        raise MtpforgeError(
            "the output exists and holds no calibration inputs",
            where=shown(path),
            why="`--force` replaces only files that `mtpforge capture` wrote",
            fix="remove it yourself, or name another with `--out`",
            code=errors.MACHINE,
        )


def target_of(path: Path) -> str:
    """Identity of the target that the inputs of a file were captured from; "" where there are none, or none says."""
    return str(_metadata(path).get("target", "")) if path.is_file() else ""


def _metadata(path: Path) -> dict[str, object]:
    """What a file that begins as `_header` has it says of itself, {} for any other."""
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    try:
        entries = json.loads(start[8:])
    except (ValueError, RecursionError):
        return {}
    metadata = entries.get("__metadata__") if isinstance(entries, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def refuse_small_disk(path: Path, n_bytes: int) -> None:
    """Refuse a destination whose disk has no room for a file of this size."""
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    if (free := shutil.disk_usage(folder).free) < n_bytes:
        raise MtpforgeError(
            f"not enough disk: {file_size(n_bytes)} are needed, {file_size(free)} are free",
            where=shown(path),
            fix="free some, or choose another disk with `--out`",
            code=errors.MACHINE,
        )


@contextmanager
def _beside(path: Path) -> Iterator[tuple[int, Path]]:
    """The hidden file that will become `path`: empty, held by this process alone, gone where the writer fails."""
    temporary = path.with_name(f".{path.name}.mtpforge-tmp")
    try:
        fd = files.hold(temporary, wait=False)
    except BlockingIOError as error:
        fix = "wait for it, or name another output with `--out`"
        what = "another process writes this file"
        raise MtpforgeError(what, where=shown(temporary), fix=fix, code=errors.MACHINE) from error
    try:
        os.ftruncate(fd, 0)
        yield fd, temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _fill(fd: int, path: Path, sequences: Iterable[Sequence], target: str, dtype: str) -> None:
    """All of the file but its name."""
    import torch

    at, starts, token_ids, positions = _HEADER_BYTES, [0], [], []
    width = 0
    for sequence in sequences:
        width = _check(path, sequence, width)
        rows = sequence.hidden.to(getattr(torch, DTYPES[dtype].torch))
        if not bool(rows.isfinite().all()):
            raise invalid(path, f"sequence {len(starts) - 1} holds values that are no numbers", HIDDEN)
        if (row := overflowing(rows.float())) is not None:
            raise invalid(path, f"row {row} of sequence {len(starts) - 1} is too large for a norm", HIDDEN)
        at = _put(fd, rows, at)
        starts.append(starts[-1] + len(rows))
        token_ids.append(sequence.token_ids)
        positions.append(sequence.positions)
    if len(starts) == 1:
        raise invalid(path, "there is no sequence to write")
    if (at - _HEADER_BYTES) % _ALIGNED:
        why = f"hidden states of {width} columns do not fill whole words of {_ALIGNED} bytes"
        raise invalid(path, why, HIDDEN)
    small = {TOKENS: torch.cat(token_ids), POSITIONS: torch.cat(positions), STARTS: torch.tensor(starts)}
    for values in small.values():
        at = _put(fd, values, at)
    specs = {HIDDEN: Spec(dtype, (starts[-1], width))}
    specs |= {name: Spec("I64", tuple(values.shape)) for name, values in small.items()}
    effects.put(fd, memoryview(_header(specs, shown(target))), 0)


def _check(path: Path, sequence: Sequence, width: int) -> int:
    """Columns of the hidden states; rows that are none are an error."""
    import torch

    token_ids, positions, hidden = sequence.token_ids, sequence.positions, sequence.hidden
    n = len(token_ids)
    if hidden.ndim != 2 or not n or token_ids.shape != (n,) or positions.shape != (n,) or len(hidden) != n:  # noqa: PLR2004
        shapes = f"token ids {list(token_ids.shape)}, positions {list(positions.shape)}, states {list(hidden.shape)}"
        raise invalid(path, f"a sequence needs as many of each, at least one: {shapes}")
    if width not in (0, hidden.shape[1]):
        raise invalid(path, f"one sequence has {width} columns, another {hidden.shape[1]}", HIDDEN)
    if token_ids.dtype != torch.int64 or positions.dtype != torch.int64:
        raise invalid(path, f"token ids are {token_ids.dtype}, positions {positions.dtype}, not int64")
    why, name = odd_rows(token_ids, positions)
    if why:
        raise invalid(path, why, name)
    return int(hidden.shape[1])


def _header(specs: dict[str, Spec], target: str) -> bytes:
    """The first bytes of the file, padded to their fixed length."""
    entries: dict[str, object] = {"__metadata__": {"format": FORMAT, "target": target}}
    end = 0
    for name, spec in specs.items():
        entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [end, end + spec.n_bytes]}
        end += spec.n_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    room = _HEADER_BYTES - 8
    return room.to_bytes(8, "little") + text.ljust(room)


def _put(fd: int, values: Tensor, at: int) -> int:
    """Write a tensor's bytes at an offset; where the next ones go."""
    import torch

    raw = values.contiguous().reshape(-1).view(torch.uint8).numpy().data
    effects.put(fd, raw, at)
    return at + raw.nbytes
