"""Ranges of remote files into the range cache: several at a time, each written down as soon as it is durable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, TypeAlias

from mtpforge.checkpoint import cache
from mtpforge.checkpoint.cache import Identity, RangeFile
from mtpforge.checkpoint.ranges import Range, coalesce, split
from mtpforge.checkpoint.transfer import Remote
from mtpforge.report import OnProgress, Progress

Ranges: TypeAlias = tuple[Range, ...]

CONNECTIONS: Final = 8
PART_BYTES: Final = 32 << 20  # one request, and what a killed process loses at most on each connection
_GAPS: Final = (1 << 20, 1 << 18, 1 << 16, 1 << 14, 1 << 12, 1 << 10)
_WASTE: Final = 100  # at most a hundredth of the bytes fetched lies in gaps
_TICK_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    file: RangeFile
    range: Range


def join(missing: Mapping[str, Iterable[Range]]) -> dict[str, Ranges]:
    """Ranges by file, joined over the widest gaps that cost less than a hundredth of their bytes."""
    exact = {name: coalesce(parts) for name, parts in missing.items()}
    n_bytes = _total(exact)
    for gap in _GAPS:
        joined = {name: coalesce(parts, gap) for name, parts in exact.items()}
        if (_total(joined) - n_bytes) * _WASTE <= n_bytes:
            return joined
    return exact


def fetch(
    remote: Remote,
    files: Mapping[str, RangeFile],
    wanted: Mapping[str, Iterable[Range]],
    on_progress: OnProgress | None = None,
) -> None:
    """Make these ranges local. Waits for other processes that fetch into the same files, then takes what they left."""
    with contextlib.ExitStack() as held:
        missing: dict[str, Ranges] = {}
        for name in sorted(wanted):  # one order for all processes: no two wait for each other
            held.enter_context(files[name].locked())
            if left := files[name].missing(wanted[name]):
                missing[name] = left
        parts: list[_Part] = []
        for name, ranges in join(missing).items():
            stat = remote.stat(name)
            held.enter_context(files[name].filling(Identity(stat.n_bytes, stat.etag)))
            # Asked again: bytes of another version were dropped just now. Nothing is asked for beyond the file's end.
            left = coalesce(_within(files[name].missing(ranges if files[name].held else wanted[name]), stat.n_bytes))
            parts += (_Part(name, files[name], part) for part in split(left, PART_BYTES))
        if parts:
            cache.refuse_full(parts[0].file.path.parent, sum(part.range.n_bytes for part in parts))
            _receive_all(remote, parts, on_progress)


def _within(ranges: Iterable[Range], n_bytes: int) -> Iterator[Range]:
    return (Range(min(part.start, n_bytes), min(part.stop, n_bytes)) for part in ranges)


def _total(ranges: Mapping[str, Ranges]) -> int:
    return sum(part.n_bytes for parts in ranges.values() for part in parts)


def _receive_all(remote: Remote, parts: Sequence[_Part], on_progress: OnProgress | None) -> None:
    """All parts, on a few connections. The first failure stops the others; what they have is written down."""
    done = [0] * len(parts)
    total = sum(part.range.n_bytes for part in parts)
    with ThreadPoolExecutor(min(CONNECTIONS, len(parts)), "mtpforge-fetch") as pool:
        pending: set[Future[None]] = {pool.submit(_receive, remote, part, done, i) for i, part in enumerate(parts)}
        try:
            while pending:
                finished, pending = wait(pending, _TICK_SECONDS, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                if on_progress is not None:
                    on_progress(Progress("fetch", sum(done), total))
        except BaseException:  # KeyboardInterrupt too
            remote.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _receive(remote: Remote, part: _Part, done: list[int], at: int) -> None:
    position = part.range.start
    chunks = remote.chunks(part.name, part.range)
    try:
        with contextlib.closing(chunks):
            for chunk in chunks:
                part.file.put(position, chunk)
                position += len(chunk)
                done[at] += len(chunk)
    finally:
        part.file.finish(Range(part.range.start, position))
