"""`python -m loader REQUEST REPORT`: both JSON files. Exit 0 with a report, 2 where vLLM cannot be imported.

The report goes to a file because vLLM and its dependencies write to both streams.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path

from . import stand_in
from .request import Request
from .verdict import Findings

NOT_INSTALLED = 2


def main(request_file: str, report_file: str) -> int:
    """Answer one request."""
    if importlib.util.find_spec("vllm") is None:
        sys.stderr.write("no module named vllm\n")
        return NOT_INSTALLED
    request = Request(**json.loads(Path(request_file).read_text()))
    findings = Findings()
    accepted = False
    try:
        stand_in.prepare(request.capability, "meta" if request.meta else "cpu")
        import torch
        import vllm
    except ImportError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return NOT_INSTALLED
    from .check import RefusedError, check

    findings.facts["versions"] = {"vllm": vllm.__version__, "torch": torch.__version__}
    try:
        check(request, findings)
        accepted = True
    except RefusedError as error:
        findings.errors.insert(0, str(error))
    report = {"accepted": accepted, "complete": not findings.errors, **dataclasses.asdict(findings)}
    Path(report_file).write_text(json.dumps(report, default=str))
    return 0


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the report is on disk; threads that vLLM's libraries started are not waited for
