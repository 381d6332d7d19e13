"""Run by an interpreter with SGLang: many questions to its loader for one import of it, each answered in a fork.

PYTHON sglang_answers.py ANSWER    requests by name as JSON on stdin, reports by name into the file
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import torch

from mtpforge.engines.loading.refusing import RefusedError
from mtpforge.engines.loading.verdict import Findings
from mtpforge.engines.sglang.loader import stand_in
from mtpforge.engines.sglang.loader.request import Request

# What the loader and the classes that it builds would import.
MODULES = (
    "sglang.srt.server_args",
    "sglang.srt.runtime_context",
    "sglang.srt.distributed.parallel_state",
    "sglang.srt.model_loader.loader",
    "sglang.srt.models.registry",
    "sglang.srt.models.glm4_moe_nextn",
    "sglang.srt.models.glm4_moe_lite_nextn",
    "sglang.srt.models.deepseek_nextn",
    "sglang.srt.models.glm5_next_nextn",
    "sglang.srt.speculative.spec_utils",
)


def main(answer: str) -> None:
    torch.set_num_threads(1)  # a process of several threads must not fork
    asked = {name: Request(**request) for name, request in json.load(sys.stdin).items()}
    reports: dict[str, object] = {}
    for capability in sorted({request.capability for request in asked.values()}):
        mine = {name: request for name, request in asked.items() if request.capability == capability}
        reports |= forked(lambda capability=capability, mine=mine: on_device(capability, mine))
    Path(answer).write_text(json.dumps(reports, default=str))


def on_device(capability, asked):
    """Reports of one device: SGLang asks which it is when imported."""
    stand_in.prepare(capability)
    for name in MODULES:
        importlib.import_module(name)
    return {name: forked(lambda request=request: one(request)) for name, request in asked.items()}


def one(request):
    from mtpforge.engines.sglang.loader.check import check

    findings, accepted = Findings(), False
    try:
        check(request, findings)
        accepted = True
    except RefusedError as error:
        findings.errors.insert(0, str(error))
    return {"accepted": accepted, "complete": not findings.errors, **dataclasses.asdict(findings)}


def forked(call):
    """What a call gives, in a child that ends with it."""
    with tempfile.NamedTemporaryFile() as file:
        child = os.fork()
        if child == 0:
            try:
                found = call()
            except BaseException:  # noqa: BLE001  told by the parent
                found = {"error": traceback.format_exc()}
            Path(file.name).write_text(json.dumps(found, default=str))
            os._exit(0)
        os.waitpid(child, 0)
        return json.loads(Path(file.name).read_text() or '{"error": "died"}')


if __name__ == "__main__":
    main(sys.argv[1])
