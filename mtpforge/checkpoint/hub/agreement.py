"""Whether the bytes that came are those of the hub: nobody else asks. huggingface_hub (2.4.0) compares lengths alone.

    the file is here whole      its SHA-256 is compared with the one that the hub names: LFS files have it as their etag
    some ranges of it are       a random sample is fetched a second time, at most a hundredth of the bytes

Where a hash differs, the whole file comes a second time. Where a sample differs, all does that came since the last
check; each piece until two transfers in a row agree on it. What does not agree then is dropped, with an error.

What a sample misses: of bytes that were damaged alone, each has a hundredth to be noticed; of k damaged stretches as
long as those sampled, none with a probability of 0.99^k. A way that changes bytes always alike is not noticed at all.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from mtpforge.checkpoint.hub import refusals
from mtpforge.checkpoint.hub.cache import RangeFile
from mtpforge.checkpoint.hub.checksums import Checksums, Piece
from mtpforge.checkpoint.hub.ranges import Range, coalesce, split
from mtpforge.checkpoint.hub.transfer import Remote

Call: TypeAlias = Callable[[], None]

SHARE: Final = 100  # a hundredth of the bytes is fetched twice
FLOOR_BYTES: Final = 64 << 10  # or so many, where that is more
TRANSFERS: Final = 4  # of one piece, at most
_MAX_STRETCHES: Final = 256  # requests of one sample
_STRETCH_BYTES: Final = (64 << 10, 1 << 20)  # shortest and longest
_SHA256: Final = re.compile(r"[0-9a-f]{64}")

RANDOM = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of one of several files."""

    name: str
    range: Range


def draw(came: Mapping[str, Iterable[Range]], rng: random.Random) -> tuple[Stretch, ...]:
    """Stretches of what came, by file, drawn at random: at least one, at most a hundredth or FLOOR_BYTES."""
    joined = {name: coalesce(parts) for name, parts in came.items()}
    budget = max(FLOOR_BYTES, sum(part.n_bytes for parts in joined.values() for part in parts) // SHARE)
    shortest, longest = _STRETCH_BYTES
    n_bytes = min(longest, max(shortest, budget // (_MAX_STRETCHES // 4)))
    stretches = [Stretch(name, part) for name, parts in sorted(joined.items()) for part in split(parts, n_bytes)]
    return tuple(rng.sample(stretches, min(len(stretches), _MAX_STRETCHES, budget // n_bytes)))


def confirm(remote: Remote, files: Mapping[str, RangeFile], each: Callable[[Sequence[Call]], None]) -> int:
    """Compare what came into these files since the last check, each inside `filling`; the bytes fetched for that.

    each: makes the calls, several at a time. Raises MtpforgeError where the bytes do not settle.
    """
    came = {name: file for name, file in sorted(files.items()) if file.unchecked}
    whole = [name for name, file in came.items() if _digest_named(file)]
    again = _Again(remote, came, each)
    for name in whole:
        _confirm_whole(came[name], name, again)
    sampled = {name: [p.range for p in file.unchecked] for name, file in came.items() if name not in whole}
    if sampled and again.differs(draw(sampled, RANDOM)):
        for name in sampled:
            again.settle(name, came[name].unchecked)
    for file in came.values():
        file.settle()
    return again.n_bytes


def _digest_named(file: RangeFile) -> str:
    """The SHA-256 that the hub names, of a file that is here whole; else nothing."""
    identity = file.identity
    if identity is None or not _SHA256.fullmatch(identity.etag) or file.held != (Range(0, identity.n_bytes),):
        return ""
    return identity.etag


def _confirm_whole(file: RangeFile, name: str, again: _Again) -> None:
    expected = _digest_named(file)
    if _sha256(file) == expected:
        return
    again.settle(name, file.pieces)
    if (found := _sha256(file)) != expected:
        file.forget(file.pieces)
        raise refusals.altered(again.remote.where(name), expected, found)


def _sha256(file: RangeFile) -> str:
    digest = hashlib.sha256()
    for piece in file.pieces:
        digest.update(file.read(piece.range))
    return digest.hexdigest()


class _Again:
    """Second transfers, and their bytes."""

    def __init__(self, remote: Remote, files: Mapping[str, RangeFile], each: Callable[[Sequence[Call]], None]) -> None:
        self.remote, self._files, self._each = remote, files, each
        self._sizes: list[int] = []

    @property
    def n_bytes(self) -> int:
        """Bytes fetched."""
        return sum(self._sizes)

    def differs(self, stretches: Iterable[Stretch]) -> bool:
        """Whether a stretch comes otherwise than it came before."""
        found: list[Stretch] = []

        def compare(stretch: Stretch) -> None:
            if self._fetch(stretch) != self._files[stretch.name].read(stretch.range):
                found.append(stretch)

        self._each([partial(compare, stretch) for stretch in stretches])
        return bool(found)

    def settle(self, name: str, pieces: Sequence[Piece]) -> None:
        """Fetch each piece until two transfers in a row agree on it; keep the last."""
        file, open_ = self._files[name], list(pieces)
        for _ in range(TRANSFERS - 1):
            differing: list[Piece] = []

            def compare(piece: Piece, differing: list[Piece] = differing) -> None:
                raw = self._fetch(Stretch(name, piece.range))
                checksums = Checksums(piece.range.start)
                checksums.add(raw)
                (now,) = checksums.pieces()
                if now != piece or raw != file.read(piece.range):
                    file.put(piece.range.start, raw)
                    file.finish([now])
                    differing.append(now)

            self._each([partial(compare, piece) for piece in open_])
            open_ = differing
            if not open_:
                return
        file.forget(open_)
        raise refusals.disagreeing(self.remote.where(name), sum(p.range.n_bytes for p in open_), TRANSFERS)

    def _fetch(self, stretch: Stretch) -> bytes:
        raw = b"".join(self.remote.chunks(stretch.name, stretch.range, again=True))
        self._sizes.append(len(raw))
        return raw
