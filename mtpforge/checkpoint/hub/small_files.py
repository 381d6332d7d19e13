"""Small files of a hub repository, whole, from the hub's own cache: as the hub has them, or not at all."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from huggingface_hub import constants

from mtpforge.checkpoint.hub import cache, pinning, refusals
from mtpforge.checkpoint.hub.notes import LOG
from mtpforge.checkpoint.hub.transfer import Remote

_LIKE_A_HASH: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256_DIGITS: Final = 64
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_OFFICIAL: Final = "https://huggingface.co"  # small files there have git's hash, LFS and xet files their SHA-256
# What servers give as the etag of a file: git (the hub, its faithful mirrors), plain sums (proxies and object stores).
_HASHES: Final[tuple[Callable[[bytes], str], ...]] = (
    lambda raw: hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest(),
    lambda raw: hashlib.sha256(raw).hexdigest(),
    lambda raw: hashlib.sha1(raw, usedforsecurity=False).hexdigest(),
    lambda raw: hashlib.md5(raw, usedforsecurity=False).hexdigest(),
)


def read(remote: Remote, file: str, refuse_offline: Callable[[str], None]) -> bytes:
    """The file's bytes, fetched where the hub's cache lacks them, and again, once, where no hash vouches for them.

    The cache keeps a file under its etag, without quotes and `W/` (huggingface_hub 2.4.0, file_download.py). One that
    is a hash of the bytes settles it. Where a server's etags are none, two transfers must agree. refuse_offline:
    raises, given what is wrong, where nothing may be asked.
    """
    path = pinning.whole(remote.repo, remote.revision, file)
    is_cached = path is not None
    if path is None:
        refuse_offline("")
        path = remote.download(file)
    raw, etag = _read(path)
    if _vouches(etag, raw) or (is_cached and not _LIKE_A_HASH.fullmatch(etag)):
        return raw
    if is_cached:
        refuse_offline("its copy in the hub's cache is damaged")
    path = remote.download(file, again=True)
    again, etag = _read(path)
    if _vouches(etag, again):
        return again
    if again == raw and not _SHA256.fullmatch(etag) and constants.ENDPOINT != _OFFICIAL:
        _say_compared(constants.ENDPOINT)
        return again
    with cache.disk_errors(path):  # else the next run would take it for what somebody else has fetched
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    if _LIKE_A_HASH.fullmatch(etag):
        raise refusals.altered(remote.where(file), etag, _HASHES[len(etag) == _SHA256_DIGITS](again))
    raise refusals.disagreeing(remote.where(file), len(again), 2)


def _read(path: Path) -> tuple[bytes, str]:
    """The bytes, and the etag that they came with; "" where the cache keeps none (file systems without links)."""
    with cache.disk_errors(path):
        return path.read_bytes(), path.resolve().name if path.is_symlink() else ""


def _vouches(etag: str, raw: bytes) -> bool:
    return not etag or any(hash_of(raw) == etag for hash_of in _HASHES)


@functools.cache
def _say_compared(endpoint: str) -> None:
    """Once for each server."""
    LOG.warning("the etags of %s are no hashes of its files: small files are fetched twice and compared", endpoint)
