"""`python -m loader REQUEST REPORT`: both JSON files. Exit 0 with a report, 2 where SGLang cannot be imported."""

from __future__ import annotations

import sys

from mtpforge.engines.loading.answering import answer, leave
from mtpforge.engines.loading.verdict import Findings

from . import stand_in
from .request import Request


def _prepare(request: Request) -> None:
    stand_in.prepare(request.capability)


def _check(request: Request, findings: Findings) -> None:
    from .check import check  # imports SGLang, which must find the stand-ins

    check(request, findings)


if __name__ == "__main__":
    leave(answer("sglang", Request, _prepare, _check, sys.argv[1:]))
