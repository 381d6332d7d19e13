"""A hub repository as a checkpoint: pinned to a commit, read by headers and byte ranges.

Small files (config, index, card, licences) go through the hub's own cache (`small_files.py`). Of weight files only
headers and the ranges asked for are fetched, into the range cache (`weight_files.py`), unless the hub's cache holds the
whole file: then that is used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Final

from huggingface_hub import constants

from mtpforge.checkpoint import gguf, header, json_fields, metadata
from mtpforge.checkpoint.checkpoint import Checkpoint, Downloaded, Stray
from mtpforge.checkpoint.error_places import errors_of, place_in
from mtpforge.checkpoint.hub import fetching, pinning, refusals, small_files
from mtpforge.checkpoint.hub.ranges import Range
from mtpforge.checkpoint.hub.transfer import Info, Remote
from mtpforge.checkpoint.hub.weight_files import WeightFiles
from mtpforge.errors import MtpforgeError, shown
from mtpforge.report import OnProgress
from mtpforge.tensors import TensorRef

MAX_OUTSIDE_FILES: Final = 8  # so many files outside the index are looked into; a folder of adapters is not


def open_hub(repo: str, revision: str | None, *, choice: str = "", offline: bool) -> Checkpoint:
    """The repository `org/name` at a branch, tag or commit (None: its default branch), resolved to a commit now.

    choice: which of its models in GGUF is meant, "" where it holds safetensors, or one model.

    offline: nothing is asked, everything comes from the caches; HF_HUB_OFFLINE does the same. Errors have code 4: no
    such repository or revision, gated, no network, retries spent, offline and not cached.
    """
    info = pinning.pin(repo, revision, offline=offline)
    ending = f"@{revision}" if revision else ""
    if choice or gguf.is_all(info.files):
        named = f"{repo}:{choice}{ending}" if choice else repo + ending
        holder = HubRepo(repo, info, label=named, offline=offline, config={})
        safe = filter(metadata.is_below, info.files)
        otherwise = f"a revision is typed `{repo}@{shown(revision or choice or 'main')}`"
        files = gguf.chosen(safe, choice, named, lambda name, _: f"`{repo}:{shown(name)}{ending}`", otherwise)
        return gguf.Gguf(holder, files, choice)
    return HubRepo(repo, info, label=repo + ending, offline=offline)


class HubRepo:
    """A hub repository at one commit; see `Checkpoint`. Safe to read from several threads."""

    def __init__(
        self, repo: str, info: Info, *, label: str, offline: bool, config: Mapping[str, object] | None = None
    ) -> None:
        """config: in place of the repository's own config.json."""
        self._repo, self._label, self._commit, self._files = repo, label, info.commit, info.files
        self._by_option = offline
        self._headers: dict[str, dict[str, TensorRef]] = {}
        self._is_restated = False
        refuse = self._refuse_offline
        self._bytes = WeightFiles(repo, info.commit, is_offline=self._is_offline, refuse_offline=refuse)
        if config is not None:
            self._config = config
            return
        raw = self.small_file(metadata.CONFIG)
        if raw is None:
            raise refusals.no_file(repo, self._commit, metadata.CONFIG)
        with errors_of(self):
            self._config = metadata.config(raw)

    def __repr__(self) -> str:
        return f"HubRepo({self.identity!r})"

    @property
    def label(self) -> str:
        """What the user typed."""
        return self._label

    @property
    def identity(self) -> str:
        """`org/name@<commit>`."""
        return f"{self._repo}@{self._commit}"

    @property
    def location(self) -> str:
        """The hub id, without a revision."""
        return self._repo

    @property
    def revision(self) -> str:
        """The commit, 40 hex digits."""
        return self._commit

    @property
    def config(self) -> Mapping[str, object]:
        """config.json."""
        return self._config

    @property
    def is_restated(self) -> bool:
        """Whether the quantization block is none of its files'."""
        return self._is_restated

    def restated(self, block: Mapping[str, object]) -> HubRepo:
        """The same files and headers under another quantization block."""
        other = copy.copy(self)
        # `quantization` is a property that keeps what it found: here it is given.
        told = {"_config": {**self._config, "quantization_config": dict(block)}, "quantization": dict(block)}
        vars(other).update(told, _is_restated=True)
        return other

    @cached_property
    def quantization(self) -> Mapping[str, object]:
        """The raw quantization block, {} where there is none."""
        with errors_of(self):
            return metadata.quantization(self._config, self.small_file)

    @cached_property
    def names(self) -> frozenset[str]:
        """Tensors by index, without an index by the headers of all weight files."""
        return frozenset(self._holders)

    @property
    def has_headers(self) -> bool:
        """Whether the repository holds any *.safetensors."""
        return bool(self._weights)

    @property
    def unread(self) -> str:
        """What its weights are instead."""
        return "" if self.has_headers else metadata.unread(self._files)

    @property
    def only_source(self) -> str:
        """It may be a target."""
        return ""

    def piece(self, file: str, start: int, stop: int) -> tuple[bytes, int]:
        """Bytes [start, stop) of a header, fewer at the end of the file, and the size of the whole."""
        size = self._files.get(file)
        return self._bytes.piece(file, Range(start, stop if size is None else max(min(stop, size), start)))

    @property
    def downloaded(self) -> Downloaded:
        """Bytes of weight files that were fetched so far."""
        return self._bytes.downloaded

    def strays(self, prefix: str) -> tuple[Stray, ...]:
        """Tensors under `prefix` outside the index, or in more than one file.

        Reads the headers of the files in which the index has such tensors, and of those that it does not name, unless
        there are more than MAX_OUTSIDE_FILES of them.
        """
        index = self._index
        if index is None:
            return ()
        outside = [file for file in self._weights if file not in set(index.values())]
        inside = {file for name, file in index.items() if name.startswith(prefix)}
        files = sorted(inside.union(outside if len(outside) <= MAX_OUTSIDE_FILES else ()))
        self._read_headers(files)
        holders: dict[str, list[str]] = {}
        for file in files:
            for name in self._headers[file]:
                if name.startswith(prefix):
                    holders.setdefault(name, []).append(file)
        return tuple(
            Stray(name, tuple(found), index.get(name, ""))
            for name, found in sorted(holders.items())
            if len(found) > 1 or name not in index
        )

    def locate(self, names: Iterable[str]) -> dict[str, TensorRef]:
        """Where these tensors lie; reads the headers of the files that hold them. An absent one is an error."""
        files = {name: self._holder(name) for name in names}
        self._read_headers(sorted(set(files.values())))
        for name, file in files.items():
            if name not in self._headers[file]:
                raise MtpforgeError(
                    f"`{shown(file)}` does not hold `{shown(name)}`",
                    where=place_in(self, file),
                    why=f"{metadata.INDEX} says that it does",
                    fix="give another revision: `org/name@revision`",
                )
        return {name: self._headers[file][name] for name, file in files.items()}

    def base_models(self) -> tuple[str, ...]:
        """`base_model` of README.md."""
        return metadata.base_models(self.small_file(metadata.CARD))

    def small_file(self, name: str) -> bytes | None:
        """A small file by its name, whole; None where there is none."""
        if name not in self._files:
            return None
        if (size := self._files[name] or 0) > json_fields.MAX_JSON_BYTES:
            raise MtpforgeError(
                f"`{shown(name)}` of {self._repo} is too large",
                where=self.identity,
                why=f"it has {size:,} bytes, at most {json_fields.MAX_JSON_BYTES:,} are read",
                fix="give another revision: `org/name@revision`",
            )
        return small_files.read(Remote(self._repo, self._commit), name, partial(self._refuse_offline, name))

    def documents(self) -> dict[str, bytes]:
        """Licence and notice files, by file name."""
        found: dict[str, bytes] = {}
        for name in metadata.document_names(self._files):
            metadata.refuse_large_document(name, self._files[name] or 0)
            found[name] = self.small_file(name) or b""
            metadata.refuse_large_document(name, len(found[name]))
        return found

    def fetch(self, refs: Iterable[TensorRef], on_progress: OnProgress | None = None) -> None:
        """Make these bytes local: coalesced ranges, several at a time; what is cached is not asked for again.

        What came is compared with the hub (`agreement.py`). Bytes that do not settle are an error with code 4.
        """
        self._bytes.fetch(refs, on_progress)

    def missing_bytes(self, refs: Iterable[TensorRef]) -> int:
        """Bytes that `fetch` would still have to download, gaps included."""
        return self._bytes.missing_bytes(refs)

    def local_file(self, file: str) -> Path:
        """The local file that holds what was fetched of a file of the repository, at the same offsets."""
        return self._bytes.path(file)

    def read(self, ref: TensorRef, into: memoryview) -> None:
        """Fill `into` with the bytes of a tensor that was fetched. What the disk damaged since is fetched again."""
        target = into.cast("B")
        if target.nbytes != ref.stop - ref.start:
            raise ValueError(f"a buffer of {target.nbytes} bytes for {ref.stop - ref.start}")
        self._bytes.read(ref, target)

    @cached_property
    def _weights(self) -> tuple[str, ...]:
        """Weight files at the top of the repository, sorted; engines look nowhere else."""
        return tuple(
            sorted(f for f in self._files if f.endswith(metadata.SUFFIX) and "/" not in f and metadata.is_below(f))
        )

    @cached_property
    def _index(self) -> dict[str, str] | None:
        raw = self.small_file(metadata.INDEX)
        with errors_of(self):
            return None if raw is None else metadata.index(raw)

    @cached_property
    def _holders(self) -> dict[str, str]:
        """The file of each tensor: by index, else by the headers of the files that engines read without one."""
        if self._index is not None:
            return self._index
        counted = tuple(file for file in self._weights if file.startswith("consolidated")) or self._weights
        self._read_headers(counted)
        holders: dict[str, str] = {}
        for file in counted:
            for name in self._headers[file]:
                if name in holders:
                    raise MtpforgeError(
                        f"`{shown(name)}` lies in two files",
                        where=f"{self._label}: {shown(holders[name])}, {shown(file)}",
                        why=f"without a {metadata.INDEX} nothing says which copy counts",
                        fix="give another revision or another checkpoint",
                    )
                holders[name] = file
        return holders

    def _holder(self, name: str) -> str:
        file = self._holders.get(name)
        if file is None:
            raise MtpforgeError(
                f"`{shown(self._label)}` has no tensor `{shown(name)}`",
                where=self.identity,
                why=(f"{metadata.INDEX} does not name it" if self._index is not None else "no header names it")
                if self.has_headers
                else "the repository holds no safetensors",
                fix=f"`mtpforge inspect {shown(self._label)}` shows what the checkpoint holds",
            )
        if file not in self._files:
            raise MtpforgeError(
                f"`{shown(file)}` is not in {self._repo}",
                where=f"{self.identity}, {metadata.INDEX}",
                why=f"the index says that it holds `{shown(name)}`",
                fix="give another revision: `org/name@revision`",
            )
        return file

    @property
    def _is_offline(self) -> bool:
        return self._by_option or bool(constants.HF_HUB_OFFLINE)

    def _refuse_offline(self, file: str, damage: str) -> None:
        if self._is_offline:
            what = f"`{shown(file)}` of {self._repo}"
            raise refusals.offline(what, self.identity, by_option=self._by_option, damage=damage)

    def _read_headers(self, files: Sequence[str]) -> None:
        """Have the headers of these files in memory, several read at a time."""
        new = [file for file in files if file not in self._headers]
        if len(new) == 1:
            self._headers[new[0]] = self._header(new[0])
        elif new:
            with ThreadPoolExecutor(min(fetching.CONNECTIONS, len(new)), "mtpforge-headers") as pool:
                self._headers.update(zip(new, pool.map(self._header, new), strict=True))

    def _header(self, file: str) -> dict[str, TensorRef]:
        """The tensors of one file, from exactly its header's bytes."""
        n_bytes = header.LENGTH_BYTES
        first, size = self._bytes.piece(file, Range(0, n_bytes))
        with errors_of(self):
            length = header.length(first, file, size)
            raw, size = self._bytes.piece(file, Range(n_bytes, n_bytes + length))
            return header.parse(raw, file, size)
