"""The weight files of a hub repository, as far as they are here: whole in the hub's cache, or by ranges in ours."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from mtpforge.checkpoint.checkpoint import Downloaded
from mtpforge.checkpoint.hub import cache, fetching, pinning, refusals
from mtpforge.checkpoint.hub.cache import RangeFile
from mtpforge.checkpoint.hub.ranges import Range, coalesce
from mtpforge.checkpoint.hub.transfer import Known, Remote
from mtpforge.errors import MtpforgeError, shown
from mtpforge.report import OnProgress
from mtpforge.tensors import TensorRef

Wanted: TypeAlias = Mapping[str, tuple[RangeFile, Sequence[Range]]]


class WeightFiles:
    """Fetches, checks and reads them. Safe to use from several threads.

    refuse_offline(file, damage): raises where nothing may be asked; damage says why a file that was here is asked for.
    """

    def __init__(self, repo: str, commit: str, *, is_offline: bool, refuse_offline: Callable[[str, str], None]) -> None:
        self._repo, self._commit = repo, commit
        self._is_offline, self._refuse_offline = is_offline, refuse_offline
        self._known = Known()
        self._local: dict[str, Path | RangeFile] = {}
        self._headers: dict[tuple[RangeFile, Range], bytes] = {}  # sha256 of what was read as headers, uncompared yet
        self._lock, self._mending = threading.Lock(), threading.Lock()
        self.downloaded = Downloaded()

    def fetch(self, refs: Iterable[TensorRef], on_progress: OnProgress | None) -> None:
        """Make these bytes local, and compare with the hub what came, and what an earlier run left uncompared."""
        self._fetch(self._wanted(refs), on_progress)

    def missing_bytes(self, refs: Iterable[TensorRef]) -> int:
        """Bytes that `fetch` would still have to download, gaps included."""
        missing = {name: file.missing(parts) for name, (file, parts) in self._wanted(refs).items()}
        return sum(part.n_bytes for parts in fetching.join(missing).values() for part in parts)

    def path(self, file: str) -> Path:
        """The local file with what was fetched of a file of the repository, at the same offsets."""
        local = self._place(file)
        return local.path if isinstance(local, RangeFile) else local

    def read(self, ref: TensorRef, target: memoryview) -> None:
        """Fill `target` (uint8) with the bytes of a tensor that was fetched; what the disk damaged is fetched again."""
        local = self._place(ref.file)
        if isinstance(local, RangeFile):
            self._mend(ref.file, local, part := Range(ref.start, ref.stop))
            if local.missing([part]):
                raise self._gone(ref, "its bytes are not in the download cache")
        path, done = self.path(ref.file), 0
        with cache.disk_errors(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while done < target.nbytes and (count := os.preadv(descriptor, [target[done:]], ref.start + done)):
                    done += count
            finally:
                os.close(descriptor)
        if done < target.nbytes:
            raise self._gone(ref, f"the local file ends at byte {ref.start + done:,}, the tensor at {ref.stop:,}")

    def piece(self, file: str, part: Range) -> tuple[bytes, int]:
        """Bytes of a header, fetched where they are not here; and the size of the whole file."""
        local = self._place(file)
        if isinstance(local, RangeFile):
            self._fetch({file: (local, (part,))}, confirm=False)  # with the first tensors of the file
            self._mend(file, local, part)
        path = self.path(file)
        with cache.disk_errors(path), path.open("rb", buffering=0) as opened:
            raw, n_bytes = os.pread(opened.fileno(), part.n_bytes, part.start), os.fstat(opened.fileno()).st_size
        if isinstance(local, RangeFile):
            self._headers[local, part] = hashlib.sha256(raw).digest()
        return raw, n_bytes

    def _place(self, file: str) -> Path | RangeFile:
        with self._lock:
            if file not in self._local:
                ranges = RangeFile(cache.commit_folder(self._repo, self._commit) / file)
                self._local[file] = pinning.whole(self._repo, self._commit, file) or ranges
            return self._local[file]

    def _wanted(self, refs: Iterable[TensorRef]) -> dict[str, tuple[RangeFile, tuple[Range, ...]]]:
        """The ranges of these tensors by file, without the files that are here whole."""
        by_file: dict[str, list[Range]] = {}
        for ref in refs:
            by_file.setdefault(ref.file, []).append(Range(ref.start, ref.stop))
        places = {name: self._place(name) for name in by_file}
        return {name: (p, coalesce(by_file[name])) for name, p in places.items() if isinstance(p, RangeFile)}

    def _fetch(
        self, wanted: Wanted, on_progress: OnProgress | None = None, *, confirm: bool = True, damage: str = ""
    ) -> None:
        if missing := [name for name, (file, parts) in wanted.items() if file.missing(parts)]:
            self._refuse_offline(min(missing), damage)
        doubtful = [name for name, (file, _) in wanted.items() if confirm and not self._is_offline and file.unchecked]
        if not (files := {name: wanted[name][0] for name in sorted({*missing, *doubtful})}):
            return
        remote = Remote(self._repo, self._commit, self._known)
        ranges = {name: wanted[name][1] for name in files}
        downloaded = fetching.fetch(remote, files, ranges, on_progress, confirm=confirm)
        with self._lock:
            self.downloaded += downloaded
        if confirm:
            self._refuse_other_headers(files.values())

    def _refuse_other_headers(self, files: Iterable[RangeFile]) -> None:
        """Raise where a second transfer mended bytes of a header: what was located by the first lies elsewhere."""
        among = set(files)
        for (file, part), digest in list(self._headers.items()):
            if file in among and hashlib.sha256(file.read(part)).digest() != digest:
                raise refusals.other_header(file.path)

    def _mend(self, file: str, local: RangeFile, part: Range) -> None:
        """Have bytes that are here as they came: where one piece is damaged, look through the file, and fetch."""
        if not local.damaged(part) and not local.missing([part]):
            return
        with self._mending:  # of two threads one fetches, and the other finds nothing missing after it
            if not local.damaged(part):
                return
            with local.locked():
                local.forget(damaged := local.damaged(Range(0, sys.maxsize)))
            self._fetch({file: (local, [piece.range for piece in damaged])}, damage="its copy was damaged on the disk")
            if local.damaged(part):
                raise refusals.rotten(local.path)

    def _gone(self, ref: TensorRef, why: str) -> MtpforgeError:
        where = f"{shown(self.path(ref.file))}, tensor {shown(ref.name)}"
        fix = "run the command again: it fetches what is missing; for a damaged hub cache first `hf cache verify`"
        return MtpforgeError(f"`{shown(ref.file)}` is not complete here", where=where, why=why, fix=fix)
