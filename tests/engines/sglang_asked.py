"""Many questions to SGLang's own loader for one import of it: each is answered in a fork.

`sglang_answers.py` is the other side.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from mtpforge.engines.sglang.loader.request import Request

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("MTPFORGE_TEST_SGLANG_PYTHON")
in_sglang = pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_SGLANG_PYTHON names no interpreter with SGLang")


def verdicts(requests: dict[str, Request]) -> dict[str, dict[str, object]]:
    """name -> report, or {"error": why there is none}."""
    asked = {name: dataclasses.asdict(request) for name, request in requests.items()}
    with tempfile.TemporaryDirectory() as home:
        answer = Path(home) / "answer.json"
        done = subprocess.run(
            [PYTHON, Path(__file__).with_name("sglang_answers.py"), answer],
            input=json.dumps(asked),
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HOME": home},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.exists(), done.stderr[-3000:]
        return json.loads(answer.read_text())
