"""A local folder as a checkpoint: headers by file, bytes by pread into the caller's buffer; no maps, no whole files.

Which files count: those that model.safetensors.index.json names; without an index every *.safetensors at the top of
the folder, and of those only consolidated*.safetensors where there are any, as engines do (vLLM 0.33.0,
model_executor/model_loader/default_loader.py).
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import shlex
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

from mtpforge.checkpoint import gguf, header, metadata
from mtpforge.checkpoint.checkpoint import Checkpoint, Downloaded, Stray
from mtpforge.checkpoint.error_places import errors_of, place_in
from mtpforge.checkpoint.folder_files import Files
from mtpforge.errors import MtpforgeError, shown
from mtpforge.report import OnProgress
from mtpforge.tensors import TensorRef

SAMPLE_BYTES: Final = 16 * 1024  # of each end of a shard, for the identity: the header or its start, and real weights


_ENDS: Final = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d{1,19}\s*,\s*(\d{1,19})')


def open_folder(path: Path, *, label: str = "") -> Folder:
    """The checkpoint in a folder; a path to its config.json means the folder."""
    folder = _meant(path)
    if not folder.is_dir():
        raise MtpforgeError(
            f"`{shown(path)}` is no folder",
            where=shown(path),
            why=metadata.unread([path.name])
            or "a checkpoint is a folder with a config.json, beside its *.safetensors where weights are needed",
            fix="give the folder that holds the file",
        )
    return Folder(folder, label or str(path))


def open_local(path: Path, *, label: str = "") -> Checkpoint:
    """What is at a path: a folder of safetensors, one of a model in GGUF, or a GGUF file and its other parts."""
    if path.name.endswith(gguf.SUFFIX) and path.is_file():
        holder = Folder(path.parent, label or str(path), config={})
        return gguf.Gguf(holder, _model(holder, path.parent, path.name))
    folder = _meant(path)
    if folder.is_dir() and gguf.is_all(Files(folder).names()):
        holder = Folder(folder, label or str(path), config={})
        return gguf.Gguf(holder, _model(holder, folder, ""))
    return open_folder(path, label=label)


def _meant(path: Path) -> Path:
    """The folder, where a path leads to its config.json."""
    return path.parent if path.name == metadata.CONFIG and path.is_file() else path


def _model(holder: Folder, folder: Path, wanted: str) -> tuple[str, ...]:
    """The files of the model in GGUF that is meant, "" for the only one."""
    return gguf.chosen(holder.files, wanted, holder.label, lambda _, file: f"`{shown(folder / file)}`")


def _without_config(label: str, path: Path, files: Files) -> MtpforgeError:
    if metadata.DELTA in files.names():
        return MtpforgeError(
            f"`{shown(label)}` is a delta, no checkpoint",
            where=shown(path),
            why="it holds what a graft adds to one target, and no config of its own",
            fix=f"graft it: `mtpforge graft --delta {shlex.quote(shown(label))} --into CKPT -o DIR`",
        )
    return MtpforgeError(
        f"`{shown(label)}` has no {metadata.CONFIG}",
        where=shown(path),
        why="a checkpoint is read by its config",
        fix=f"give a folder that holds {metadata.CONFIG}, or a hub id such as `zai-org/GLM-5.2-FP8`",
    )


def open_file(path: Path, config: Mapping[str, object], *, label: str = "") -> Folder:
    """One *.safetensors file as a checkpoint of its own, described by the config of another."""
    return Folder(path.parent, label or str(path), only=path.name, config=config)


class Folder:
    """A checkpoint in a local folder; see `Checkpoint`. Safe to read from several threads."""

    def __init__(self, path: Path, label: str, *, only: str = "", config: Mapping[str, object] | None = None) -> None:
        """Open a folder. only: the one weight file that counts. config: in place of the folder's own config.json."""
        self._only = only
        self._path = Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would lose the name that the user knows
        self._label = label
        self._files = Files(self._path)
        self._headers: dict[str, dict[str, TensorRef]] = {}
        self._is_restated, self._below = False, ""
        self._lock = threading.Lock()
        if config is not None:
            self._config = config
            return
        raw = self._files.whole(metadata.CONFIG)
        if raw is None:
            raise _without_config(label, self._path, self._files)
        with errors_of(self):
            self._config = metadata.config(raw)

    def __repr__(self) -> str:
        return f"Folder({str(self._path)!r})"

    @property
    def label(self) -> str:
        """What the user typed."""
        return self._label

    @property
    def location(self) -> str:
        """The absolute path."""
        return str(self._path)

    @property
    def revision(self) -> str:
        """A folder has none."""
        return ""

    @property
    def config(self) -> Mapping[str, object]:
        """config.json."""
        return self._config

    @cached_property
    def identity(self) -> str:
        """`<folder name>#<16 hex digits>`: sha256 over config.json, the index, and every *.safetensors by name.

        Of a weight file count its name, its size and 16 KiB of both ends: cheap beside hundreds of gigabytes. A change
        in the middle of a file of the same size goes unseen here; `read` refuses files that change under it.
        """
        digest = hashlib.sha256()
        for name in (metadata.CONFIG, metadata.INDEX):
            raw = self._files.whole(name) or b""
            digest.update(f"{name} {len(raw)}\n".encode() + raw)
        for name in self.weight_files:
            size = self._files.size(name)
            digest.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
            for at in (0, max(size - SAMPLE_BYTES, 0)):
                digest.update(self._files.piece(name, SAMPLE_BYTES, at))
        return f"{self._path.name}#{digest.hexdigest()[:16]}"

    @property
    def is_restated(self) -> bool:
        """Whether the quantization block is none of its files'."""
        return self._is_restated

    def restated(self, block: Mapping[str, object]) -> Folder:
        """The same files and headers under another quantization block."""
        other = copy.copy(self)
        # `quantization` is a property that keeps what it found: here it is given.
        told = {"_config": {**self._config, "quantization_config": dict(block)}, "quantization": dict(block)}
        vars(other).update(told, _is_restated=True)
        return other

    def layer_alone(self, prefix: str) -> Folder:
        """The same files as if they held nothing but the tensors under `prefix`."""
        other = copy.copy(self)
        vars(other).update(names=frozenset(name for name in self.names if name.startswith(prefix)), _below=prefix)
        return other

    @cached_property
    def quantization(self) -> Mapping[str, object]:
        """The raw quantization block, {} where there is none."""
        with errors_of(self):
            return metadata.quantization(self._config, self._files.whole)

    @cached_property
    def names(self) -> frozenset[str]:
        """Tensors by index, without an index by the headers of all weight files."""
        if self._index is not None:
            return frozenset(self._index)
        return frozenset(name for file in self._counted for name in self._header(file))

    @property
    def has_headers(self) -> bool:
        """Whether the folder holds any *.safetensors."""
        return bool(self.weight_files)

    @property
    def unread(self) -> str:
        """What its weights are instead."""
        return "" if self.has_headers else metadata.unread(self._files.names())

    @property
    def only_source(self) -> str:
        """It may be a target."""
        return ""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files at the top, sorted."""
        return self._files.names()

    def piece(self, file: str, start: int, stop: int) -> tuple[bytes, int]:
        """Bytes [start, stop) of a file, fewer at its end, and the size of the whole."""
        size = self._files.size(file)
        return self._files.piece(file, max(min(stop, size) - start, 0), start), size

    @property
    def downloaded(self) -> Downloaded:
        """Nothing."""
        return Downloaded()

    def strays(self, prefix: str) -> tuple[Stray, ...]:
        """Tensors under `prefix` outside the index, or in more than one file; reads the headers of all weight files."""
        index = self._index
        return tuple(
            Stray(name, tuple(files), (index or {}).get(name, ""))
            for name, files in sorted(self.holders(prefix).items())
            if len(files) > 1 or (index is not None and name not in index)
        )

    def holders(self, prefix: str) -> dict[str, list[str]]:
        """Tensor under `prefix` -> every weight file that holds it, whatever the index says."""
        holders: dict[str, list[str]] = {}
        for file in self.weight_files:
            for name in self._under(prefix or self._below, file):
                holders.setdefault(name, []).append(file)
        return holders

    def locate(self, names: Iterable[str]) -> dict[str, TensorRef]:
        """Where these tensors lie; reads the headers of the files that hold them. An absent one is an error."""
        return {name: self._header(self._holder(name))[name] for name in names}

    def base_models(self) -> tuple[str, ...]:
        """`base_model` of README.md."""
        return metadata.base_models(self._files.whole(metadata.CARD))

    def small_file(self, name: str) -> bytes | None:
        """A small file by its name, whole; None where there is none."""
        return self._files.whole(name)

    def documents(self) -> dict[str, bytes]:
        """Licence and notice files, by file name."""
        names = metadata.document_names(self._files.names())
        found = {name: self._files.whole(name, is_copied=True) or b"" for name in names}
        for name, raw in found.items():
            metadata.refuse_large_document(name, len(raw))
        return found

    def fetch(self, refs: Iterable[TensorRef], on_progress: OnProgress | None = None) -> None:
        """Nothing to do: the bytes are here."""

    def missing_bytes(self, refs: Iterable[TensorRef]) -> int:  # noqa: ARG002  # the protocol's
        """0: the bytes are here."""
        return 0

    def local_file(self, file: str) -> Path:
        """The weight file itself."""
        return self._path / file

    def read(self, ref: TensorRef, into: memoryview) -> None:
        """Fill `into` with the bytes of a tensor. A file cut short, or changed since its header was read: errors."""
        target = into.cast("B")
        if target.nbytes != ref.stop - ref.start:
            raise ValueError(f"a buffer of {target.nbytes} bytes for {ref.stop - ref.start}")
        if (done := self._files.fill(ref.file, target, ref.start)) < target.nbytes:
            raise MtpforgeError(
                f"`{shown(ref.file)}` is cut short",
                where=place_in(self, ref.file, ref.name),
                why=f"it ends at byte {ref.start + done:,}, the tensor at {ref.stop:,}",
                fix="copy or download the file again",
            )

    @cached_property
    def weight_files(self) -> tuple[str, ...]:
        """Every *.safetensors at the top of the folder, whether the index names it or not."""
        if self._only:
            return (self._only,)
        return tuple(name for name in self._files.names() if name.endswith(metadata.SUFFIX))

    @cached_property
    def _counted(self) -> tuple[str, ...]:
        """The files that engines read when there is no index."""
        return tuple(file for file in self.weight_files if file.startswith("consolidated")) or self.weight_files

    @cached_property
    def _index(self) -> dict[str, str] | None:
        raw = None if self._only else self._files.whole(metadata.INDEX)
        with errors_of(self):
            return None if raw is None else metadata.index(raw)

    def _header(self, file: str) -> dict[str, TensorRef]:
        """The tensors of one file, remembered."""
        with self._lock, errors_of(self):
            if file not in self._headers:
                self._headers[file] = header.parse(self.raw_header(file), file, self._files.size(file))
            return self._headers[file]

    def raw_header(self, file: str) -> bytes:
        """The JSON header of a weight file, as it lies there."""
        n_bytes = header.length(self._files.piece(file, header.LENGTH_BYTES, 0), file, self._files.size(file))
        return self._files.piece(file, n_bytes, header.LENGTH_BYTES)

    def cut_short(self) -> tuple[str, ...]:
        """Weight files that end before their last tensor does, by their headers' own words, or within their headers.

        Of those that an engine reads: a shard that the index does not name is none. No header is parsed.
        """
        found = []
        read = self._counted if self._index is None else set(self._index.values())
        for file in (file for file in self.weight_files if file in read):
            try:
                raw = self.raw_header(file)
            except MtpforgeError:
                found.append(file)
                continue
            ends = [int(end) for end in _ENDS.findall(raw)]
            if ends and header.LENGTH_BYTES + len(raw) + max(ends) > self._files.size(file):
                found.append(file)
        return tuple(found)

    def _under(self, prefix: str, file: str) -> list[str]:
        """Names under `prefix` in one file. A header that does not contain the prefix as text is not parsed.

        A layer lies in a handful of hundreds of shards, and parsing them all would take seconds. A backslash could
        spell the same name in other letters, a wrapper puts words behind `model.`.
        """
        with errors_of(self):
            raw = self.raw_header(file)
            if prefix.removeprefix("model.").encode() not in raw and b"\\" not in raw:
                return []
            return [name for name in header.parse(raw, file, self._files.size(file)) if name.startswith(prefix)]

    def _holder(self, name: str) -> str:
        """The one file that holds a tensor."""
        if self._index is not None:
            return self._indexed(name, self._index)
        holders = [file for file in self._counted if name in self._header(file)]
        if not holders:
            raise self._absent(name)
        if len(holders) > 1:
            raise MtpforgeError(
                f"`{shown(name)}` lies in {len(holders)} files",
                where=", ".join(shown(self._path / file) for file in holders),
                why=f"without a {metadata.INDEX} nothing says which copy counts",
                fix="remove the files that are superseded, or add the index",
            )
        return holders[0]

    def _indexed(self, name: str, index: Mapping[str, str]) -> str:
        if name not in index:
            raise self._absent(name)
        file = index[name]
        if not self._files.exists(file):
            raise MtpforgeError(
                f"`{shown(file)}` is not in `{shown(self._label)}`",
                where=place_in(self, file),
                why=f"{metadata.INDEX} says that it holds `{shown(name)}`",
                fix="download the file into the folder, or give the hub id instead of the folder",
            )
        if name not in self._header(file):
            raise MtpforgeError(
                f"`{shown(file)}` does not hold `{shown(name)}`",
                where=place_in(self, file),
                why=f"{metadata.INDEX} says that it does",
                fix="fetch file and index again from the same revision",
            )
        return file

    def _absent(self, name: str) -> MtpforgeError:
        fix = "give a folder that holds the weights as safetensors, or a hub id"
        if self._index is not None:
            why, fix = f"{metadata.INDEX} does not name it", "`mtpforge inspect` shows what the checkpoint holds"
        elif self.has_headers:
            why, fix = "no header of its files names it", "`mtpforge inspect` shows what the checkpoint holds"
        else:
            why = self.unread or "the folder holds a config and no weights"
        return MtpforgeError(
            f"`{shown(self._label)}` has no tensor `{shown(name)}`", where=shown(self._path), why=why, fix=fix
        )
