"""Calls that may never come back, apart: in threads that nobody waits for once the command is left.

The threads of `concurrent.futures` are joined when a pool is left and again when the process ends, so one reply that
stalls would hold both. These are daemons; who leaves early cuts the connections that they read from.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

from mtpforge.errors import MtpforgeError

T = TypeVar("T")
_PAUSE: Final = 0.1  # seconds between two looks


def results(calls: Sequence[Callable[[], T]], at_a_time: int, look: Callable[[], None]) -> Iterator[tuple[int, T]]:
    """Place and result of each call, in the order in which they come; so many are under way at each moment.

    The first call that fails raises here, as does `look`, which is called several times a second, however often results
    come: no further call is begun then, and those under way are left alone.
    """
    waiting = deque(enumerate(calls))
    done: SimpleQueue[tuple[int, T | BaseException]] = SimpleQueue()
    left = threading.Event()

    def work() -> None:
        while not left.is_set():
            try:
                place, call = waiting.popleft()
            except IndexError:
                return
            try:
                done.put((place, call()))
            except BaseException as error:  # noqa: BLE001 -- it is raised where the result is waited for
                done.put((place, error))
                return

    looks = _Looks(look)
    try:
        for _ in range(min(at_a_time, len(calls))):
            threading.Thread(target=work, daemon=True, name="bench").start()
        for _ in calls:
            place, result = _next(done, looks)
            if isinstance(result, BaseException):
                raise result
            yield place, result
    finally:
        left.set()


def within(seconds: float, call: Callable[[], T], late: Callable[[], MtpforgeError]) -> T:
    """What a call gives; the error `late()` where it takes longer."""
    end = time.monotonic() + seconds

    def look() -> None:
        if time.monotonic() > end:
            raise late()

    return next(result for _, result in results([call], 1, look))


class _Looks:
    """Calls of `look`, by the time that has passed since the last one."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look, self._due = look, time.monotonic() + _PAUSE

    def left(self) -> float:
        """Seconds until the next one; it is made here where it is due."""
        if time.monotonic() >= self._due:
            self._look()
            self._due = time.monotonic() + _PAUSE
        return max(0.0, self._due - time.monotonic())


def _next(done: SimpleQueue[T], looks: _Looks) -> T:
    while True:
        try:
            return done.get(timeout=looks.left())
        except Empty:
            continue
