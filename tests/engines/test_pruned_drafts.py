"""Pruned drafts through the loader of the real vLLM: as many experts as the target, fewer, and too many."""

from __future__ import annotations

import os

import pytest

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines.vllm import installed
from mtpforge.errors import MtpforgeError
from mtpforge.planning import plan
from mtpforge.pruning.expert_choice import Wish, pruned

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM"),
]


def built(source, target, folder, wish=None):
    kept = pruned(source, target, wish).kept
    build(plan(source, target, kept=kept), {"source": source, "target": target}, folder, check="off")
    return folder


@pytest.mark.parametrize("source", ["bf16", "fp8", "nvfp4", "int4-int8mix"])
def test_draft_pruned_to_the_targets_count_is_accepted(tinyglm, tmp_path, source):
    stored, target = open_checkpoint(str(tinyglm(source))), open_checkpoint(str(tinyglm("awq-int4-12experts")))
    report = installed.check(built(stored, target, tmp_path / "draft"), target, python=PYTHON)
    assert report.ok, report.facts["errors"]
    assert report.facts["tensors"] == 194


def test_draft_with_fewer_experts_than_the_target_is_accepted(tinyglm, tmp_path):
    stored, target = open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(tinyglm("awq-int4-12experts")))
    report = installed.check(built(stored, target, tmp_path / "draft", Wish(8)), target, python=PYTHON)
    assert report.ok, report.facts["errors"]


def test_draft_with_all_experts_is_refused_by_the_loader_and_before_that_by_the_plan(tinyglm, tmp_path):
    stored, target = open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(tinyglm("awq-int4-12experts")))
    with pytest.raises(MtpforgeError, match="the layer has 16 experts, the target 12"):
        plan(stored, target)
    wide = open_checkpoint(str(tinyglm("awq-int4")))
    build(plan(stored, wide), {"source": stored, "target": wide}, tmp_path / "draft", check="off")
    report = installed.check(tmp_path / "draft", target, python=PYTHON)
    assert not report.ok
    assert "experts.12." in str(report.facts["errors"])
