"""A second engine, of which nothing but its record is known: whatever asks an engine asks the one that was named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.engines.vllm import VLLM
from mtpforge.report import Trap
from mtpforge.verifying import verify


@pytest.fixture
def other(monkeypatch):
    """Put an engine with other fields than vLLM's beside it, as `other`."""

    def other_(**fields: object) -> None:
        monkeypatch.setitem(ENGINES, "other", replace(VLLM, name="Other", **fields))

    return other_


def checks(report):
    return {check.name: (check.verdict, check.detail) for check in report.checks}


def test_what_a_draft_s_own_block_means_is_asked_of_the_engine(demo, tinyglm, other):
    seen = []

    def block_traps(block, is_quantized):
        seen.append((block.get("quant_method"), is_quantized))
        return (Trap("any", "error", "no such block"),)

    other(block_traps=block_traps)
    target = open_checkpoint(str(tinyglm("awq-int4")))
    assert checks(verify(demo / "out" / "demo", target))["quantization block"] == ("passed", "agrees with the tensors")
    assert not seen
    report = verify(demo / "out" / "demo", target, engine="other")
    assert checks(report)["quantization block"] == ("failed", "no such block")
    assert seen == [("compressed-tensors", True)]
    assert not report.ok
