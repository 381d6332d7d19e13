"""A model in GGUF as a checkpoint: the family's names over the bytes of a folder or a hub repository.

What lies where, headers tell; bytes are read, fetched and cached by whoever holds the files. There is no config.json:
fields of it are made of the file's own keys (names.py), and a draft needs a target to take the others from.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Final, Protocol

from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint, Downloaded, Stray
from mtpforge.checkpoint.error_places import errors_of, place_in
from mtpforge.checkpoint.gguf import header, names
from mtpforge.checkpoint.gguf.header import Header, Stored
from mtpforge.errors import MtpforgeError, shown
from mtpforge.report import OnProgress
from mtpforge.tensors import TensorRef

METHOD: Final = "gguf"
ONLY_SOURCE: Final = "its weights are GGUF, which is only read: a draft for llama.cpp is made by its own converter"
_SAMPLE_BYTES: Final = 16 * 1024  # of each end of a file, for the identity
_MOST_WEIGHTS: Final = 200_000  # with every expert counted; GLM-5.2 has 60,000
_THREADS: Final = 8  # headers that are read at a time
_SPLIT: Final = ("split.count", "split.no")  # keys of every part
_HUB: Final = "https://huggingface.co/"


class Holder(Checkpoint, Protocol):
    """A folder or a repository: it holds the files."""

    def piece(self, file: str, start: int, stop: int) -> tuple[bytes, int]:
        """Bytes [start, stop) of a file, fewer at its end, and the size of the whole."""
        ...


class Gguf:
    """One model in GGUF files; see `Checkpoint`. Safe to read from several threads."""

    def __init__(self, holder: Holder, files: Sequence[str], choice: str = "") -> None:
        """files: all parts of the model, in order. choice: which of a repository's models it is, "" for the only one.

        Reads every header, of which there are as many as parts.
        """
        self._holder, self._files, self._choice = holder, tuple(files), choice
        self._is_restated = False
        with errors_of(self):
            parts = _headers(holder, self._files)
            first = parts[0]
            table = names.architecture_of(first.values, self._files[0])
            held = [stored.name for part in parts for stored in part.tensors]
            self._config = table.config(first, held, self._files[0]) | _called(first, self._files[0])
            self._refs, self._unread = _located(table, self._files, parts)
            self._made_from = _made_from(first)
        self._quantization: Mapping[str, object] = {"quant_method": METHOD}

    def __repr__(self) -> str:
        return f"Gguf({self.identity!r})"

    @property
    def label(self) -> str:
        """What the user typed."""
        return self._holder.label

    @property
    def location(self) -> str:
        """The folder that holds the files, or the hub id."""
        return self._holder.location

    @property
    def revision(self) -> str:
        """Commit of a hub repository, else ""."""
        return self._holder.revision

    @property
    def config(self) -> Mapping[str, object]:
        """What the file's keys say of config.json."""
        return self._config

    @property
    def quantization(self) -> Mapping[str, object]:
        """The method, and nothing else: every tensor has its own type."""
        return self._quantization

    @property
    def names(self) -> frozenset[str]:
        """Tensors by the headers, under the family's names; stacked experts one by one."""
        return frozenset(self._refs)

    @property
    def is_restated(self) -> bool:
        """Whether the quantization block is none of its files'."""
        return self._is_restated

    @property
    def has_headers(self) -> bool:
        """They were read."""
        return True

    @property
    def unread(self) -> str:
        """Why there is no MTP layer, by the file's own keys; "" where they state one."""
        if self._config.get("num_nextn_predict_layers"):
            return ""
        return (
            "its keys state no `nextn_predict_layers`: it was converted without (`--no-mtp`, or by an older converter)"
        )

    @property
    def only_source(self) -> str:
        """Why nothing can be drafted for it."""
        return ONLY_SOURCE

    @property
    def downloaded(self) -> Downloaded:
        """Bytes of its files that were fetched so far."""
        return self._holder.downloaded

    @cached_property
    def identity(self) -> str:
        """`org/name@<commit>`, with `:choice` after the name; of files `<first file>#<content hash>`.

        The hash is over name, size and 16 KiB of both ends of every file.
        """
        if self.revision:
            name = f"{self.location}:{self._choice}" if self._choice else self.location
            return f"{name}@{self.revision}"
        digest = hashlib.sha256()
        for file in self._files:
            first, size = self._holder.piece(file, 0, _SAMPLE_BYTES)
            last, _ = self._holder.piece(file, max(size - _SAMPLE_BYTES, 0), size)
            digest.update(f"{file} {size}\n".encode("utf-8", "surrogateescape") + first + last)
        return f"{self._files[0]}#{digest.hexdigest()[:16]}"

    def restated(self, block: Mapping[str, object]) -> Gguf:
        """The same files under another quantization block."""
        other = copy.copy(self)
        other._config = {**self._config, "quantization_config": dict(block)}  # noqa: SLF001  # its own copy
        other._quantization, other._is_restated = dict(block), True  # noqa: SLF001
        return other

    def strays(self, prefix: str) -> tuple[Stray, ...]:  # noqa: ARG002  # the protocol's
        """None: there is no index, and a tensor in two files was refused."""
        return ()

    def locate(self, names: Iterable[str]) -> dict[str, TensorRef]:
        """Where these tensors lie. An absent one, and one of a type that is not read: errors."""
        found = {}
        for name in names:
            if name not in self._refs:
                raise MtpforgeError(
                    f"`{shown(self.label)}` has no tensor `{shown(name)}`",
                    where=shown(self.location),
                    why="no header of its files names it",
                    fix="`mtpforge inspect` shows what the checkpoint holds",
                )
            if name in self._unread:
                raise _not_read(self, self._refs[name], self._unread[name])
            found[name] = self._refs[name]
        return found

    def base_models(self) -> tuple[str, ...]:
        """`base_model` of README.md, else what the file itself says that it was made from."""
        return self._holder.base_models() or self._made_from

    def small_file(self, name: str) -> bytes | None:
        """A small file beside it, whole; None where there is none."""
        return self._holder.small_file(name)

    def documents(self) -> dict[str, bytes]:
        """Licence and notice files, by file name."""
        return self._holder.documents()

    def fetch(self, refs: Iterable[TensorRef], on_progress: OnProgress | None = None) -> None:
        """Make these bytes local."""
        self._holder.fetch(refs, on_progress)

    def missing_bytes(self, refs: Iterable[TensorRef]) -> int:
        """Bytes that `fetch` would still have to download."""
        return self._holder.missing_bytes(refs)

    def local_file(self, file: str) -> Path:
        """The local file with what was fetched, at the same offsets."""
        return self._holder.local_file(file)

    def read(self, ref: TensorRef, into: memoryview) -> None:
        """Fill `into` with the bytes of a tensor."""
        self._holder.read(ref, into)


def _headers(holder: Holder, files: Sequence[str]) -> tuple[Header, ...]:
    """The headers of all parts, several read at a time; parts that are not each other's are an error."""
    held = _Held()
    if len(files) == 1:
        parts = [_part(holder, files[0], held, is_first=True)]
    else:
        with ThreadPoolExecutor(min(_THREADS, len(files)), "mtpforge-headers") as pool:
            parts = list(pool.map(lambda file: _part(holder, file, held, is_first=file == files[0]), files))
    for number, (file, part) in enumerate(zip(files, parts, strict=True)):
        # 0 says one file: `llama-gguf-split --merge` writes it, and keeps the other keys of the first part
        count, place = part.values.get("split.count") or 1, part.values.get("split.no", 0)
        if (count, place) != (len(files), number):
            why = f"it says that it is part {shown(place)} of {shown(count)}, counted from 0"
            raise header.invalid(file, f"{why}; by the files' names it is {number} of {len(files)}")
    stated = parts[0].values.get("split.tensors.count")
    n_tensors = sum(len(part.tensors) for part in parts)
    if len(files) > 1 and stated is not None and stated != n_tensors:
        raise header.invalid(files[0], f"all parts are said to hold {shown(stated)} tensors, they hold {n_tensors:,}")
    return tuple(parts)


class _Held:
    """Tensors of all headers that were read so far: each is bounded, and so are all together."""

    def __init__(self) -> None:
        self._count, self._lock = 0, threading.Lock()

    def add(self, count: int, file: str) -> None:
        """MtpforgeError where there are too many, also of 0 more."""
        with self._lock:
            self._count += count
            if self._count > _MOST_WEIGHTS:
                raise header.invalid(file, f"with its own the parts have more than {_MOST_WEIGHTS:,} tensors")


def _part(holder: Holder, file: str, held: _Held, *, is_first: bool) -> Header:
    """A header; of the keys of a part after the first only those that say which it is."""
    held.add(0, file)  # nothing more is read where others were too many
    part = header.read(partial(holder.piece, file), file)
    held.add(len(part.tensors), file)
    return replace(part, values={key: v for key, v in part.values.items() if is_first or key in _SPLIT})


def _called(first: Header, file: str) -> dict[str, object]:
    """What the model is called, by its own word and by the file's name: no fields of config.json, but names of it."""
    name = first.values.get("general.name")
    stated: dict[str, object] = {"general.name": name} if isinstance(name, str) and name else {}
    return stated | {"general.file": file}


def _made_from(first: Header) -> tuple[str, ...]:
    """Hub ids of the base models that the keys name."""
    urls = (first.values.get(f"general.base_model.{n}.repo_url") for n in range(metadata.MAX_BASE_MODELS))
    named = (url.removeprefix(_HUB) for url in urls if isinstance(url, str) and url.startswith(_HUB))
    return tuple(filter(metadata.is_hub_id, named))


def _located(
    table: names.Architecture, files: Sequence[str], parts: Sequence[Header]
) -> tuple[dict[str, TensorRef], dict[str, Stored]]:
    """Name -> where the tensor lies; and of those whose type is not read, what the file has."""
    refs: dict[str, TensorRef] = {}
    unread: dict[str, Stored] = {}
    for file, part in zip(files, parts, strict=True):
        for stored in part.tensors:
            for ref in table.refs(stored, file):
                if ref.name in refs:
                    raise header.invalid(file, f"`{shown(ref.name)}` is held twice, also in `{refs[ref.name].file}`")
                refs[ref.name] = ref
                if len(refs) > _MOST_WEIGHTS:
                    raise header.invalid(file, f"with it there are more than {_MOST_WEIGHTS:,} weights", stored.name)
                if not stored.type.is_read:
                    unread[ref.name] = stored
    return refs, unread


def _not_read(checkpoint: Gguf, ref: TensorRef, stored: Stored) -> MtpforgeError:
    return MtpforgeError(
        f"`{shown(stored.name)}` is stored as {stored.type.name}, which is not read",
        where=place_in(checkpoint, ref.file, stored.name),
        why="no weight of a published model is: it is for numbers on the way, or newer than the gguf package",
        fix="name a file in another quantization, or the checkpoint that it was converted from",
    )
