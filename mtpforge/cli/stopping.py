"""Ctrl-C and SIGTERM: they unwind the command as exceptions, so that everything is cleaned up.

Never out of an import. Libraries that are being loaded swallow an exception as "not installed" and go on half loaded,
or abort the process where it passes through C++. An interrupt then waits until the import is done.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from mtpforge.errors import MtpforgeError

_PAUSE: Final = 0.05  # seconds between two looks at whether an import has ended
_IMPORTING: Final = "<frozen importlib"


class TerminatedError(BaseException):
    """SIGTERM arrived."""


class Stop:
    """Whether this run was asked to stop, and by which exception it does."""

    def __init__(self) -> None:
        self._asked: type[BaseException] | None = None

    def leave_if_asked(self) -> None:
        """Raise the exception again, in case that somebody in between swallowed it."""
        if self._asked:
            signal.setitimer(signal.ITIMER_REAL, 0)  # once is enough: what cleans up must not be interrupted
            raise self._asked

    def behind(self, error: BaseException) -> BaseException:
        """The stop where that is what happened: one in the middle of a lock leaves as a RuntimeError."""
        return error if self._asked is None or isinstance(error, MtpforgeError) else self._asked()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take both signals inside; elsewhere than in the main thread they cannot be taken."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._arrived) for number in (signal.SIGINT, signal.SIGTERM)}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._look)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        is_second = self._asked is not None
        self._asked = KeyboardInterrupt if number == signal.SIGINT else TerminatedError
        if is_second:  # somebody is in a hurry
            raise self._asked
        self._look(number, frame)

    def _look(self, _number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, _PAUSE)
        else:
            self.leave_if_asked()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTING):
            return True
        frame = frame.f_back
    return False
