"""The function of `import mtpforge` that makes a page of a result: what `--report` does on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from mtpforge import errors
from mtpforge.report import Report, document
from mtpforge.reporting.page import render
from mtpforge.reporting.writing import refuse, write


class Result(Protocol):
    """What a function of mtpforge gives back: a Report, or a record with one; it says what `--json` holds of it."""

    def document(self) -> dict[str, object]:
        """Keys of the command, without the head."""


def write_page(result: Result, path: str | Path) -> Path:
    """Write a result as one self-contained HTML page, whatever its answer is; where it lies.

    MtpforgeError where the place cannot be written or holds anything but an older page, or matplotlib is missing.
    """
    place = Path(path)
    refuse(place)
    keys = result.document()
    report = keys.get("report")
    exit_code = report.exit_code if isinstance(report, Report) else errors.DONE
    command = getattr(result, "command", "") or (report.command if isinstance(report, Report) else "")
    write(place, render(document(command, exit_code, keys)))
    return place
