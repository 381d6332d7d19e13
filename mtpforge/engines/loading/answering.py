"""A request file in, a report file out: the frame of every engine's `__main__`.

The report goes to a file because engines and their dependencies write to both streams.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .refusing import RefusedError
from .verdict import Findings

NOT_INSTALLED = 2
BROKEN = 3


def answer(
    package: str,
    request: Callable[..., Any],
    prepare: Callable[[Any], None],
    check: Callable[[Any, Findings], None],
    argv: list[str],
) -> int:
    """Exit code: 0 with a report, 2 where the engine is not there, 3 where it cannot be imported.

    argv: REQUEST and REPORT, both JSON files. prepare: makes the engine import as on the device that is asked
    for; ImportError where it does not. check: fills the findings, RefusedError where the engine refuses.
    """
    request_file, report_file = argv
    if importlib.util.find_spec(package) is None:
        sys.stderr.write(f"no module named {package}\n")
        return NOT_INSTALLED
    asked = request(**json.loads(Path(request_file).read_text()))
    findings = Findings()
    try:
        prepare(asked)
        import torch

        engine = importlib.import_module(package)
    except ImportError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return BROKEN
    findings.facts["versions"] = {package: engine.__version__, "torch": torch.__version__}
    accepted = False
    try:
        check(asked, findings)
        accepted = True
    except RefusedError as error:
        findings.errors.insert(0, str(error))
    report = {"accepted": accepted, "complete": not findings.errors, **dataclasses.asdict(findings)}
    Path(report_file).write_text(json.dumps(report, default=str))
    return 0


def leave(code: int) -> NoReturn:
    """End at once: the report is on disk, and threads that the engine's libraries started are not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
