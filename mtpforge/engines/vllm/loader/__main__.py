"""`python -m loader REQUEST REPORT`: both JSON files. Exit 0 with a report, 2 where vLLM cannot be imported."""

from __future__ import annotations

import sys

from mtpforge.engines.loading.answering import answer, leave
from mtpforge.engines.loading.verdict import Findings

from . import stand_in
from .request import Request


def _prepare(request: Request) -> None:
    stand_in.prepare(request.capability, "meta" if request.meta else "cpu")


def _check(request: Request, findings: Findings) -> None:
    from .check import check  # imports vLLM, which must find the stand-ins

    check(request, findings)


if __name__ == "__main__":
    leave(answer("vllm", Request, _prepare, _check, sys.argv[1:]))
