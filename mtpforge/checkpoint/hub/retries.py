"""Trouble on the way to the hub: what may pass, how long to wait, when to give up."""

from __future__ import annotations

import email.utils
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import parse_ratelimit_headers

from mtpforge.checkpoint.hub import refusals
from mtpforge.checkpoint.hub.notes import LOG

TRIES: Final = 6  # failures in a row; PROGRESS_BYTES in between start the count again
PROGRESS_BYTES: Final = 1 << 20
BACKOFF_SECONDS = 1.0  # then twice as long each time
MAX_BACKOFF_SECONDS: Final = 30.0
MAX_RETRY_AFTER_SECONDS: Final = 300.0  # the hub's rate limits count in windows of five minutes
STALL_SECONDS = 30.0  # a connection that brings fewer than STALL_BYTES in this time is given up
STALL_BYTES: Final = 1 << 15

# The HTTP library is the hub's choice (httpx in 1.x, httpx2 in 2.x): its errors are reached through the hub's own.
http: Final[Any] = sys.modules[HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]
BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})


class Stopped(Exception):  # noqa: N818  # no error: another thread failed first, or the user interrupted
    """A transfer was told to stop."""


class Trouble(Exception):  # noqa: N818  # no error yet
    """Something that may pass. seconds: how long the server asks to wait, None where it does not say."""

    def __init__(self, cause: str, seconds: float | None = None, *, is_network: bool = False) -> None:
        super().__init__(cause)
        self.cause, self.seconds, self.is_network = cause, seconds, is_network


class Changed(Exception):  # noqa: N818  # no error yet: first what is here of the file has to go
    """Under the same commit a file has another etag than before."""

    def __init__(self, file: str, before: str, now: str) -> None:
        super().__init__(file)
        self.file, self.before, self.now = file, before, now


class Patience:
    """Counts failures in a row; waits after each, gives up after TRIES."""

    def __init__(self, where: str, stop: threading.Event) -> None:
        self._where, self._stop, self._failures, self._has_said = where, stop, 0, False

    def wait(self, trouble: Trouble, received: int) -> None:
        """Sleep before the next try, or raise that there is none. received: bytes since the last failure."""
        self._failures = 1 if received >= PROGRESS_BYTES else self._failures + 1
        if self._failures >= TRIES:
            give_up = refusals.unreachable if trouble.is_network else refusals.given_up
            raise give_up(self._where, trouble.cause, self._failures)
        if (seconds := trouble.seconds) is None:
            seconds = min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (self._failures - 1))
            seconds *= random.uniform(0.75, 1.25)  # noqa: S311  # threads that failed together come back apart
        elif seconds > MAX_RETRY_AFTER_SECONDS:
            raise refusals.told_to_wait(self._where, trouble.cause, seconds)
        if not self._has_said:
            LOG.warning("waiting for the hub (%s): %s; it is asked up to %d times", self._where, trouble.cause, TRIES)
            self._has_said = True
        if self._stop.wait(seconds):
            raise Stopped


class Pace:
    """Watches one connection: Trouble where it trickles. Silence is the business of the HTTP library's time-out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since, self._n_bytes = clock, clock(), 0

    def count(self, n_bytes: int) -> None:
        """So many bytes came now."""
        self._n_bytes += n_bytes
        if (seconds := self._clock() - self._since) > STALL_SECONDS:
            if self._n_bytes < STALL_BYTES:
                raise Trouble(f"only {self._n_bytes:,} bytes came in {seconds:.0f} s")
            self._since, self._n_bytes = self._clock(), 0


def busy(response: Any) -> Trouble:  # noqa: ANN401  # httpx.Response or httpx2.Response
    """A status of BUSY, with the wait that the server asks for in either of its ways."""
    seconds: float | None = None
    limits = parse_ratelimit_headers(response.headers)
    after = response.headers.get("Retry-After", "").strip()
    if limits is not None and limits.remaining == 0:
        seconds = float(limits.reset_in_seconds)
    elif after.isdecimal():
        seconds = float(after[:9])
    elif date := email.utils.parsedate_tz(after):
        seconds = max(0.0, email.utils.mktime_tz(date) - time.time())
    too_many = " (too many requests)" if response.status_code == 429 else ""  # noqa: PLR2004
    return Trouble(f"it answered {response.status_code}{too_many}", seconds)


def broken(error: Exception) -> Trouble:
    """An error of the HTTP library, without its text."""
    if isinstance(error, http.ConnectError | http.ConnectTimeout | http.ProxyError):
        return Trouble("no connection could be made", is_network=True)
    if isinstance(error, http.TimeoutException):
        return Trouble(f"no answer within {constants.HF_HUB_DOWNLOAD_TIMEOUT} s", is_network=True)
    return Trouble("the connection broke")
