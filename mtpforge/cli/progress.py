"""Progress of long phases: bars on a terminal, a line now and then elsewhere.

Callbacks come from worker threads, one at a time or not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from mtpforge import units
from mtpforge.report import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

_SHARE: Final = 10  # percent between two lines
_SECONDS: Final = 30.0  # longest silence of a phase that moves
_HASTE: Final = 0.5  # seconds between two lines at least: a short phase is one line


def amount(progress: Progress) -> str:
    """`14.1 GB of 19.9 GB`, `3 of 5`."""
    shown = units.file_size if progress.unit == "bytes" else units.count
    return f"{shown(progress.done)} of {shown(progress.total)}"


class Bars:
    """One bar a phase: share, amount, bytes per second, time left. Drawn from the first step on until `stop`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.RLock()
        self._begin()

    def _begin(self) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Rich

        self._rich = Rich(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[amount]}"),
            TextColumn("{task.fields[pace]}"),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave what is drawn as it is; phases that move on are drawn anew below."""
        with self._lock:
            if self._tasks:
                self._rich.stop()
                self._begin()

    def advance(self, progress: Progress) -> None:
        """Move the phase's bar."""
        with self._lock:
            self._rich.start()
            if progress.phase not in self._tasks:
                self._tasks[progress.phase] = self._rich.add_task(progress.phase, total=None, amount="", pace="")
            task = self._tasks[progress.phase]
            self._rich.update(task, completed=progress.done, total=progress.total, amount=amount(progress))
            self._rich.update(task, pace=self._pace(task, progress))

    def _pace(self, task: TaskID, progress: Progress) -> str:
        running = self._rich.tasks[self._rich.task_ids.index(task)]
        if progress.done >= progress.total or not running.speed:
            return ""
        left = units.duration((progress.total - progress.done) / running.speed) + " left"
        return f"{units.file_size(running.speed)}/s   {left}" if progress.unit == "bytes" else left


class Lines:
    """A line every 10 %, or every 30 seconds where that is longer than a phase's next tenth."""

    def __init__(self, put: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._put, self._clock = put, clock
        self._last: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def advance(self, progress: Progress) -> None:
        """Say how far the phase is, if it is time to."""
        share, now = 100 * progress.done // max(progress.total, 1), self._clock()
        with self._lock:
            before, when = self._last.setdefault(progress.phase, (0, now))
            is_due = now - when >= (_HASTE if share // _SHARE > before // _SHARE else _SECONDS)
            is_done = progress.done >= progress.total and before < 100  # noqa: PLR2004 -- percent
            if not (is_due or is_done):
                return
            self._last[progress.phase] = (share, now)
            self._put(f"{progress.phase:<8} {share:>3} %   {amount(progress)}")
