"""Threads that take steps in plan order while their memory fits into the budget.

Results land at known offsets, so the number of threads changes no byte. torch, hashing and file calls release the
interpreter's lock: threads are enough.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeAlias

import torch

from mtpforge.planning.facts import RESERVED_BYTES
from mtpforge.planning.steps import Step

Work: TypeAlias = Callable[[int, Step], None]


class StoppedError(Exception):
    """Raised inside a worker when another one failed; nobody sees it."""


class Workers:
    """One run over the steps."""

    def __init__(self, steps: Sequence[Step], workers: int, memory: int) -> None:
        """`workers`: threads, 0 for one a core. `memory`: bytes for the whole of it, the reference check included."""
        self._steps = steps
        self._n_threads = max(min(workers or os.cpu_count() or 1, len(steps)), 1)
        self._budget = max(memory - RESERVED_BYTES, 1)
        self._turn = threading.Condition()
        self._next = 0
        self._held_bytes = 0
        self._failures: dict[int, BaseException] = {}
        self._stopped = False

    def run(self, work: Callable[[], Work]) -> None:
        """Run every step; `work` makes what one thread runs. The failure of the earliest step is raised."""
        before = torch.get_num_threads()
        pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="mtpforge")
        try:
            threads = [pool.submit(self._worker, work) for _ in range(self._n_threads)]
            wait(threads)
        finally:
            self._stop()
            pool.shutdown()
            torch.set_num_threads(before)
        if self._failures:
            raise self._failures[min(self._failures)]
        for thread in threads:
            thread.result()

    def leave_if_stopped(self) -> None:
        """Called between bands, so that an interruption or a failure elsewhere does not wait for a large step."""
        if self._stopped:
            raise StoppedError

    def _worker(self, work: Callable[[], Work]) -> None:
        torch.set_num_threads(1)  # these threads are the parallelism
        task = work()
        while (index := self._take()) is not None:
            try:
                task(index, self._steps[index])
            except StoppedError:
                return
            except BaseException as failure:  # noqa: BLE001  carried to the thread that waits
                self._failures[index] = failure
                self._stop()
                return
            finally:
                self._give(self._steps[index].peak_bytes)

    def _take(self) -> int | None:
        """Next step, once its memory fits; one step always may run. In order, so a large one is never passed by."""
        with self._turn:
            while not self._stopped and self._next < len(self._steps):
                peak = self._steps[self._next].peak_bytes
                if not self._held_bytes or self._held_bytes + peak <= self._budget:
                    self._held_bytes += peak
                    self._next += 1
                    return self._next - 1
                self._turn.wait()
            return None

    def _give(self, n_bytes: int) -> None:
        with self._turn:
            self._held_bytes -= n_bytes
            self._turn.notify_all()

    def _stop(self) -> None:
        with self._turn:
            self._stopped = True
            self._turn.notify_all()
