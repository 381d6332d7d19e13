"""Our answer for random targets against that of vLLM's own classes: `make test-engines` names its interpreter.

A few hundred targets of a fixed seed; MTPFORGE_TEST_TARGETS asks for more, MTPFORGE_TEST_SEED for others.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM"),
]


def test_scheme_beside_a_random_target_is_vllms_or_an_honest_refusal(release_config):
    config = release_config("target-bf16") | {"n_routed_experts": 4, "num_experts_per_tok": 4}
    config = {key: value for key, value in config.items() if key not in ("num_experts", "quantization_config")}
    done = subprocess.run(
        [PYTHON, str(Path(__file__).with_name("vllm_targets.py"))],
        input=json.dumps(config),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.index('{"counts"') :])
    assert found["different"] == [], json.dumps(found["different"][:3], indent=2)
    # Every kind of target met both answers.
    kinds = ("compressed_tensors", "modelopt", "fp8", "awq", "gptq", "auto_round", "others", "quarks")
    assert all(found["counts"].get(f"{kind}, agree, {how}", 0) > 0 for kind in kinds for how in ("made", "refused"))
    assert all(found["counts"].get(f"{kind}, {how}", 0) > 0 for kind in kinds for how in ("stated", "not stated"))
