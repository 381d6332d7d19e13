"""What hostile input may lead to, how many cases are tried, and how long one may take.

cases(150)             settings of one target: a third of 150 cases in the default run, eleven times 150 in the long one
outcome(act)           what act() gives, or the MtpforgeError that it raises; anything else fails the test
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from typing import TypeVar

from hypothesis import HealthCheck, settings

from mtpforge.errors import MtpforgeError

LONG = bool(os.environ.get("MTPFORGE_LONG"))
TIMES, PART = 11, 3  # cases of each target in the long run, and in the default one, which costs everybody's time
SECONDS = 20  # of the processor for one case; a hundred times what the slowest takes
STUCK = 300  # of the wall: a case that waits for something, and not only for its turn on a busy machine
MOST_CHARACTERS = 20_000  # of a message: someone has to read it
TOKEN = "hf_fuzzNeverShowThisTokenToAnybody00"  # in the environment of every case

Answer = TypeVar("Answer")


class NoAnswer(BaseException):
    """A case took too long. No Exception: nothing on the way may take it for a failure of its own and go on."""


def cases(usual: int) -> settings:
    """Derandomized: the same cases in every run of the same tests; the long run goes on where the default one ends."""
    return settings(
        max_examples=usual * TIMES if LONG else usual // PART,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(act: Callable[[], Answer]) -> Answer | MtpforgeError:
    """The answer, or an error that can be shown as it is: no control characters, no token, not without end."""
    with _alarm():
        try:
            return act()
        except MtpforgeError as error:
            told = str(error)
    assert all(c.isprintable() for line in told.split("\n") for c in line), repr(told)
    assert told.count("\n") <= 3, f"a name broke the form of the message: {told!r}"
    assert len(told) <= MOST_CHARACTERS, f"{len(told)} characters"
    assert TOKEN not in told
    return error_of(told)


def error_of(told: str) -> MtpforgeError:
    """The error is let go of, so that no traceback keeps files open."""
    return MtpforgeError(told)


@contextmanager
def _alarm():
    """Two clocks: the processor's for loops, which a busy machine does not make run, and the wall's for waiting."""

    def expired(number, _frame):
        raise NoAnswer(f"no answer after {SECONDS} s of work" if number == signal.SIGPROF else f"stuck for {STUCK} s")

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, STUCK))
    before = [signal.signal(number, expired) for number, _, _ in clocks]
    try:
        for _, clock, seconds in clocks:
            signal.setitimer(clock, seconds)
        yield
    finally:
        for (number, clock, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)
