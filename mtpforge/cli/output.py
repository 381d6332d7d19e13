"""The only file that prints: people's text, the JSON document, errors, progress.

stdout: the result. stderr: progress, warnings, errors, hints.
`--json`: exactly one document on stdout, also on failure. `-q`: what the command's help says of it, for scripts.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from mtpforge import errors
from mtpforge import report as results
from mtpforge.cli import streams
from mtpforge.cli.stopping import Stop
from mtpforge.errors import MtpforgeError
from mtpforge.report import OnProgress, Progress, Report, Trap
from mtpforge.tables import folded

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mtpforge.cli.progress import Bars
    from mtpforge.drafting.remarks import Remark
    from mtpforge.drafting.request import Watching

_COMMAND: Final = re.compile(r"`[^`]+`")
_VERDICT_STYLES: Final = {"passed": "green", "failed": "red", "warning": "yellow", "not checked": "yellow"}
_LABEL_STYLES: Final = {"error": "bold red", "warning": "bold yellow", "hint": "bold cyan"}
_READABLE: Final = 2_000  # characters of one word of a command
_ENDLESS: Final = 10_000  # columns of a file or a pipe: nothing is folded there


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended: keys for the JSON document, exit code."""

    document: Mapping[str, object] = field(default_factory=dict)
    exit_code: int = errors.DONE


@dataclass
class Screen:
    """Where a command's output goes, by its general options.

    argv: what the user typed, without the program. command: name of the command, once known. kept: says what an
    interrupted command leaves for the next run, as a sentence. page: where its result goes as a page, too. result: keys
    of the JSON document that stay whatever happens after them.
    """

    argv: tuple[str, ...] = ()
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    color: str = "auto"
    offline: bool = False
    debug: bool = False
    command: str = ""
    page: Path | None = None
    result: Mapping[str, object] = field(default_factory=dict)
    kept: Callable[[], str] = lambda: "nothing was written"
    stop: Stop = field(default_factory=Stop)
    _warned: set[tuple[str, str]] = field(default_factory=set)
    _streams: tuple[TextIO, TextIO] = field(default_factory=streams.standard)
    _bars: Bars | None = None
    _next: str = ""

    # What people read

    def line(self, text: str = "", style: str = "") -> None:
        """A line of the result."""
        if self._talks:
            self._rest()
            _put(self._stdout, text, style)

    def remark(self, remark: Remark) -> None:
        """What the library decided on the way."""
        if remark.aside:
            self.note(str(remark))
        else:
            self.line(str(remark))

    def answer(self, text: str) -> None:
        """What `-q` prints, if there is any."""
        if self.quiet and not self.json and text:
            _put(self._stdout, text)

    def command_line(self, argv: Sequence[str]) -> None:
        """A command to copy, long JSON readable, still one command for a shell."""
        if not self.json:
            text = folded(argv)
            self._stdout.print(text, markup=False, highlight=False, soft_wrap=True)
            longest = max(map(len, argv))
            if longest > _READABLE:
                self.note(
                    f"note: {longest:,} characters of override; `--overlay DIR` writes a folder that says the same"
                )

    def raw(self, text: str) -> None:
        """Text for another program, as it is."""
        if not self.json:
            self.text(text)

    def text(self, text: str) -> None:
        """The same, also where a document is asked for: help and versions have no other form."""
        self._streams[0].write(text if text.endswith("\n") else text + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], indent: int = 2) -> None:
        """Columns without boxes; numbers to the right. A heading of "" leaves that column without one."""
        from rich.table import Table

        if not self._talks:
            return
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=any(columns), header_style="bold")
        for number, column in enumerate(columns):
            right = bool(rows) and all(isinstance(row[number], int) for row in rows)
            last = number == len(columns) - 1
            table.add_column(
                column, justify="right" if right else "left", no_wrap=not last, overflow="fold" if last else "ellipsis"
            )
        for row in rows:
            table.add_row(*(_marked(f"{c:,}" if isinstance(c, int) else str(c), _style(str(c))) for c in row))
        self._rest()
        with self._stdout.capture() as captured:
            self._stdout.print(table)
        for text in captured.get().splitlines():
            self._streams[0].write(f"{' ' * indent}{text}".rstrip() + "\n")

    def report(self, report: Report) -> None:
        """What they come to, checks as a table, what to do about those that failed, then the traps."""
        if self.quiet and not self.json:
            self._failures(report)
            return
        if report.summary:
            self.line(report.summary, "green" if report.ok else "red")
            self.line()
        self.table(("", "", ""), [(c.name, c.verdict, c.detail) for c in report.checks], indent=0)
        fixes = (check.fix for check in report.checks if check.fix and check.verdict in ("failed", "warning"))
        told = {trap.fix for trap in report.traps if trap.severity != "note" or self.verbose}
        for fix in dict.fromkeys(fixes):
            if fix not in told:
                self._labelled((("hint", fix),))
        self.traps(report.traps)

    def _failures(self, report: Report) -> None:
        """What `-q` must not hide: each failed check, and each error that no check tells."""
        failed = [check for check in report.checks if check.verdict == "failed"]
        for check in failed:
            self._labelled((("error", f"{check.name}: {check.detail}"), ("hint", check.fix)), always=True)
        for trap in report.traps:
            if trap.severity == "error" and not any(trap.message in check.detail for check in failed):
                self._labelled((("error", trap.message), ("where", trap.where), ("hint", trap.fix)), always=True)

    def traps(self, traps: Sequence[Trap]) -> None:
        """Warnings and errors, each once; notes with `-v`."""
        for trap in traps:
            if (trap.id, trap.message) in self._warned or (trap.severity == "note" and not self.verbose):
                continue
            self._warned.add((trap.id, trap.message))
            self._labelled(((trap.severity, trap.message), ("where", trap.where), ("hint", trap.fix)))

    def note(self, text: str) -> None:
        """A remark on stderr."""
        if self._talks:
            self._rest()
            _put(self._stderr, text)

    def next(self, *argv: str) -> None:
        """The next step, with the user's own arguments: the last line, once everything else is done."""
        self._next = shlex.join(argv)

    @contextmanager
    def progress(self) -> Iterator[OnProgress]:
        """A callback for the library: bars on a terminal, now and then a line elsewhere, nothing where all is quiet."""
        from mtpforge.cli.progress import Bars, Lines

        self._streams[0].flush()
        if not self._talks or os.environ.get("TERM") == "dumb":
            yield self._unless_stopped(_ignore)
        elif self._streams[1].isatty():
            with Bars(self._stderr) as self._bars:
                yield self._unless_stopped(self._bars.advance)
        else:
            yield self._unless_stopped(Lines(self.note).advance)

    @contextmanager
    def watching(self) -> Iterator[Watching]:
        """Both callbacks of a job; bars stand still while a line is printed."""
        from mtpforge.drafting.request import Watching

        with self.progress() as on_progress:
            yield Watching(self.remark, on_progress)

    def flush(self) -> None:
        """Hand everything over to the operating system."""
        self._streams[0].flush()
        self._streams[1].flush()

    # How it ends

    def end(self, ending: Ending) -> int:
        """Write the page and print the JSON document where they are asked for, then the next step; the exit code."""
        self.result = ending.document
        if self.page is not None:
            self._write_page(self.page, ending)
        if self.json:
            self._print(results.document(self.command, ending.exit_code, ending.document))
        if self._next and self._talks:
            self._streams[0].flush()
            _put(self._stderr, f"\nNext: {self._next}")
        return ending.exit_code

    def fail(self, error: MtpforgeError, story: str) -> int:
        """Print an error in its form, beside the result that it came after, its traceback under `--debug`; the code."""
        with suppress(MtpforgeError, streams.HungUpError):  # the error that is told comes first
            if self.json:
                self._print(results.document(self.command, error.code, {**self.result, "error": _form(error)}))
            self._streams[0].flush()
        if self.debug:
            self._stderr.print(story, markup=False, highlight=False, soft_wrap=True, end="")
        self._labelled(_labels(error), always=True)
        return error.code

    def partly(self, error: MtpforgeError, ending: Ending) -> Ending:
        """What could not be done after a result was shown: printed in the error form, added to the document."""
        self._labelled(_labels(error), always=True)
        return Ending({**ending.document, "error": _form(error)}, ending.exit_code)

    # Inside

    def _rest(self) -> None:
        """Bars would be drawn over the line that follows."""
        if self._bars is not None:
            self._bars.stop()

    def _unless_stopped(self, show: OnProgress) -> OnProgress:
        def advance(progress: Progress) -> None:
            self.stop.leave_if_asked()
            show(progress)

        return advance

    @property
    def _talks(self) -> bool:
        return not (self.json or self.quiet)

    @cached_property
    def _stdout(self) -> Console:
        return self._console(self._streams[0])

    @cached_property
    def _stderr(self) -> Console:
        return self._console(self._streams[1])

    def _console(self, stream: TextIO) -> Console:
        from rich.console import Console

        always, never = self.color == "always", self.color == "never" or "NO_COLOR" in os.environ
        return Console(
            file=stream,
            force_terminal=True if always else None,
            no_color=never or None,
            width=None if stream.isatty() else _ENDLESS,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def _labelled(self, labels: Sequence[tuple[str, str]], *, always: bool = False) -> None:
        """Right-aligned labels of the error form, on stderr."""
        if not (always or self._talks):
            return
        self._streams[0].flush()
        width = max(len("error"), *(len(label) for label, text in labels if text))
        for label, text in labels:
            if text:
                line = _marked(f"{label:>{width}}: {safe(text)}")
                line.stylize(_LABEL_STYLES.get(label, "bold"), 0, width + 1)
                self._stderr.print(line, soft_wrap=True)

    def _write_page(self, page: Path, ending: Ending) -> None:
        from mtpforge.reporting.page import render
        from mtpforge.reporting.writing import write

        write(page, render(results.document(self.command, ending.exit_code, ending.document), self.argv))
        self.line()
        self.line(f"report  {page}")

    def _print(self, document: Mapping[str, object]) -> None:
        self._streams[0].write(json.dumps(document, indent=2) + "\n")


def _form(error: MtpforgeError) -> dict[str, str]:
    """An error in the document."""
    return {"what": error.what, "where": error.where, "cause": error.why, "hint": error.fix}


def _labels(error: MtpforgeError) -> tuple[tuple[str, str], ...]:
    """An error for people: four labels, in this order."""
    return ("error", error.what), ("where", error.where), ("cause", error.why), ("hint", error.fix)


def safe(text: str) -> str:
    """Text with control characters escaped: a name out of a checkpoint must not steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _marked(text: str, style: str = "") -> Text:
    """Text with its commands in cyan."""
    from rich.text import Text

    marked = Text(safe(text), style=style)
    marked.highlight_regex(_COMMAND, "cyan")
    return marked


def _put(console: Console, text: str, style: str = "") -> None:
    console.print(_marked(text, style), soft_wrap=True)


def _style(cell: str) -> str:
    return _VERDICT_STYLES.get(cell, "")


def _ignore(_progress: Progress) -> None:
    """Nothing moves."""
