"""What every checkpoint offers: a folder, a hub repository, GGUF files in either, and in tests one that lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mtpforge.hub_names import model_name
from mtpforge.report import OnProgress
from mtpforge.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Stray:
    """A tensor that engines and indexes disagree about: in files outside the index, or in several files."""

    name: str
    files: tuple[str, ...]
    indexed: str  # the file that the index names, "" where it names none


@dataclass(frozen=True, slots=True)
class Downloaded:
    """Bytes of weight files that came over the network, and those that came again only to be compared."""

    n_bytes: int = 0
    again_bytes: int = 0

    def __add__(self, other: Downloaded) -> Downloaded:
        return Downloaded(self.n_bytes + other.n_bytes, self.again_bytes + other.again_bytes)


def is_one(identity: str, other: str) -> bool:
    """Whether two identities are of one repository, at whatever commit, or of a folder with the same content."""
    is_hub = "#" not in identity + other  # folders may have an @ in their names
    return identity == other or (is_hub and identity.partition("@")[0] == other.partition("@")[0])


def place_of(identity: str) -> str:
    """Of an identity the folder's name, or the repository's."""
    return identity.rpartition("#")[0] if "#" in identity else identity.partition("@")[0]


def own_name(place: str) -> str:
    """Of a path the folder's name, of a hub's name that without its organisation, in lower case.

    One checkpoint lies in another folder on another machine, by its own name mostly.
    """
    return model_name(place).lower()


class Checkpoint(Protocol):
    """A checkpoint of which only config, names, headers and byte ranges are ever read.

    label: what the user typed, for messages. identity: `org/name@<commit>` or `<folder name>#<content hash>`.
    location: what an engine is given: an absolute folder, or the hub id. revision: commit of a hub repository, else
    "". config: config.json. quantization: the raw quantization block of config.json or of its side file, {} where
    there is none. names: tensors by index, or by the single file's header; empty when only a config is known.
    is_restated: whether that block is none of its files', but what an engine has to be told. has_headers: whether
    tensor headers can be read (a folder with config.json alone has none). unread: a sentence on weights that are
    there and are not read, or that were left out of the files, "" for none. only_source: why it can be no target, ""
    where it can. downloaded: what this process had to fetch so far; nothing for a folder.
    """

    @property
    def label(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def location(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def config(self) -> Mapping[str, object]: ...
    @property
    def quantization(self) -> Mapping[str, object]: ...
    @property
    def names(self) -> frozenset[str]: ...
    @property
    def is_restated(self) -> bool: ...
    @property
    def has_headers(self) -> bool: ...
    @property
    def unread(self) -> str: ...
    @property
    def only_source(self) -> str: ...
    @property
    def downloaded(self) -> Downloaded: ...

    def restated(self, block: Mapping[str, object]) -> Checkpoint:
        """The same checkpoint under another quantization block: what an engine is told of it as it is started."""
        ...

    def strays(self, prefix: str) -> tuple[Stray, ...]:
        """Tensors under `prefix` that lie outside the index, or in more than one file. Reads headers."""
        ...

    def locate(self, names: Iterable[str]) -> dict[str, TensorRef]:
        """Where these tensors lie; reads only the headers of the files that hold them. An absent one is an error."""
        ...

    def base_models(self) -> tuple[str, ...]:
        """`base_model` of the model card (README.md), hub ids in the card's order."""
        ...

    def small_file(self, name: str) -> bytes | None:
        """A small file by its name, whole; None where there is none. Larger than any config or index is an error."""
        ...

    def documents(self) -> dict[str, bytes]:
        """Licence and notice files (LICENSE*, NOTICE*, COPYING*), by file name; each at most 1 MB."""
        ...

    def fetch(self, refs: Iterable[TensorRef], on_progress: OnProgress | None = None) -> None:
        """Make these bytes local (hub: coalesced ranges into the cache). Does nothing for a folder."""
        ...

    def missing_bytes(self, refs: Iterable[TensorRef]) -> int:
        """Bytes that `fetch` would still have to download; 0 for a folder."""
        ...

    def local_file(self, file: str) -> Path:
        """The local file that holds what was fetched of a weight file, at the same offsets."""
        ...

    def read(self, ref: TensorRef, into: memoryview) -> None:
        """Fill `into` (exactly ref.stop - ref.start bytes) from the local bytes; short or changed reads are errors."""
        ...
