"""Ranges of remote files into the range cache: several at a time, written down once they are durable, then compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from mtpforge.checkpoint.checkpoint import Downloaded
from mtpforge.checkpoint.hub import agreement, cache, refusals
from mtpforge.checkpoint.hub.agreement import Call
from mtpforge.checkpoint.hub.cache import Identity, RangeFile
from mtpforge.checkpoint.hub.checksums import Checksums
from mtpforge.checkpoint.hub.ranges import Range, coalesce, split
from mtpforge.checkpoint.hub.retries import Changed
from mtpforge.checkpoint.hub.transfer import Remote
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
    *,
    confirm: bool = True,
) -> Downloaded:
    """Make these ranges local. Waits for other processes that fetch into the same files, then takes what they left.

    confirm: compare with the hub what came, now and in an earlier run; `agreement` says how, and what it raises.
    """
    with contextlib.ExitStack() as held:
        needed: dict[str, Ranges] = {}
        for name in sorted(wanted):  # one order for all processes: no two wait for each other
            held.enter_context(files[name].locked())
            left = files[name].missing(wanted[name])
            if left or (confirm and files[name].unchecked):
                needed[name] = left
        try:
            parts = [
                part for name, left in join(needed).items() for part in _begin(remote, name, files[name], left, held)
            ]
            if parts:
                cache.refuse_full(parts[0].file.path.parent, sum(part.range.n_bytes for part in parts))
                _receive_all(remote, parts, on_progress)
            n_bytes, again = sum(part.range.n_bytes for part in parts), 0
            if confirm:
                each = partial(_each, remote, tick=_telling(on_progress, [n_bytes], n_bytes))
                again = agreement.confirm(remote, {name: files[name] for name in needed}, each)
        except Changed as change:
            files[change.file].drop()
            raise refusals.changed(remote.where(change.file), change.before, change.now) from None
        return Downloaded(n_bytes, again)


def _begin(remote: Remote, name: str, file: RangeFile, left: Ranges, held: contextlib.ExitStack) -> Iterator[_Part]:
    """Make a file ready for the bytes that it lacks; the requests for them."""
    stat = remote.stat(name)
    identity = Identity(stat.n_bytes, stat.etag)
    if file.identity not in {None, identity}:  # who asks has read its header
        raise Changed(name, file.identity.etag if file.identity else "", stat.etag)
    held.enter_context(file.filling(identity))
    exact = file.missing(_within(left, stat.n_bytes))  # joined over gaps that may be here; nothing beyond the end
    return (_Part(name, file, part) for part in split(exact, PART_BYTES))


def _within(ranges: Iterable[Range], n_bytes: int) -> Iterator[Range]:
    return (Range(min(part.start, n_bytes), min(part.stop, n_bytes)) for part in ranges)


def _total(ranges: Mapping[str, Ranges]) -> int:
    return sum(part.n_bytes for parts in ranges.values() for part in parts)


def _receive_all(remote: Remote, parts: Sequence[_Part], on_progress: OnProgress | None) -> None:
    """All parts; what came of one that failed is written down too."""
    done = [0] * len(parts)
    tick = _telling(on_progress, done, sum(part.range.n_bytes for part in parts))
    _each(remote, [partial(_receive, remote, part, done, i) for i, part in enumerate(parts)], tick)


def _telling(on_progress: OnProgress | None, done: Sequence[int], total: int) -> Call:
    """Says how far the fetch is; whoever listens may also stop it."""

    def tick() -> None:
        if on_progress is not None:
            on_progress(Progress("fetch", sum(done), total))

    return tick


def _each(remote: Remote, calls: Sequence[Call], tick: Call) -> None:
    """Make the calls, on a few connections. The first failure stops the others."""
    with ThreadPoolExecutor(max(1, min(CONNECTIONS, len(calls))), "mtpforge-fetch") as pool:
        pending: set[Future[None]] = {pool.submit(call) for call in calls}
        try:
            while pending:
                finished, pending = wait(pending, _TICK_SECONDS, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                tick()
        except BaseException:  # KeyboardInterrupt too
            remote.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _receive(remote: Remote, part: _Part, done: list[int], at: int) -> None:
    position, checksums = part.range.start, Checksums(part.range.start)
    chunks = remote.chunks(part.name, part.range)
    try:
        with contextlib.closing(chunks):
            for chunk in chunks:
                part.file.put(position, chunk)
                checksums.add(chunk)
                position += len(chunk)
                done[at] += len(chunk)
    finally:
        part.file.finish(checksums.pieces())
