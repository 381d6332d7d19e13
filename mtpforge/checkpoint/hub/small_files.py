"""Small files of a hub repository, whole, from the hub's own cache: as the hub has them, or not at all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mtpforge.checkpoint.hub import cache, pinning, refusals
from mtpforge.checkpoint.hub.transfer import Remote

_HASH: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_OF_GIT: Final = 40


def read(remote: Remote, file: str, refuse_offline: Callable[[str], None]) -> bytes:
    """The file's bytes, fetched where the hub's cache lacks them, and again, once, where they have another hash.

    The cache keeps a file under its etag (huggingface_hub 2.4.0, file_download.py): for small files the SHA-1 that git
    gives it, for LFS files the SHA-256. refuse_offline: raises, given what is wrong, where nothing may be asked.
    """
    path = pinning.whole(remote.repo, remote.revision, file)
    if path is None:
        refuse_offline("")
        path = remote.download(file)
    raw, expected, found = _read(path)
    if found == expected:
        return raw
    refuse_offline("its copy in the hub's cache is damaged")
    raw, expected, found = _read(remote.download(file, again=True))
    if found != expected:
        raise refusals.altered(remote.where(file), expected, found)
    return raw


def _read(path: Path) -> tuple[bytes, str, str]:
    """The bytes, the hash that they should have, and the one that they have."""
    with cache.disk_errors(path):
        raw, expected = path.read_bytes(), path.resolve().name
    if not _HASH.fullmatch(expected):
        return raw, "", ""
    if len(expected) == _OF_GIT:
        return raw, expected, hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()
    return raw, expected, hashlib.sha256(raw).hexdigest()
