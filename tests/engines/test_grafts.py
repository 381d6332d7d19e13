"""Grafts through the loader of the real vLLM, each as its own target and its own draft."""

from __future__ import annotations

import os

import pytest

import mtpforge
from mtpforge.engines.vllm import installed

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM"),
]
# layer, target, scheme that is asked for, tensors of the layer
GRAFTS = (
    ("bf16", "awq-int4", None, 71),
    ("fp8", "awq-int4", None, 129),
    ("int4-int8mix", "bf16", None, 183),
    ("nvfp4", "awq-int4", "nvfp4", 215),
    ("nvfp4", "awq-int4", "int4-g32-asym", 242),
    ("bf16", "nvfp4", None, 71),
)


@pytest.mark.parametrize(("layer", "target", "scheme", "n"), GRAFTS)
def test_graft_is_accepted_as_its_own_target_and_draft(tinyglm, tmp_path, layer, target, scheme, n):
    made = mtpforge.graft(tinyglm(layer), tinyglm(target), out=tmp_path / "graft", scheme=scheme, link="sym")
    assert len(made.document["tensors"]) == n
    report = installed.check(made.path, made.path, python=PYTHON)
    assert report.ok, report.facts["errors"]


def test_layer_of_another_scheme_than_the_config_says_is_refused(tinyglm, tmp_path):
    """The config is what lets it in."""
    made = mtpforge.graft(tinyglm("bf16"), tinyglm("awq-int4"), out=tmp_path / "graft", link="sym")
    (made.path / "config.json").write_bytes((tinyglm("awq-int4") / "config.json").read_bytes())
    report = installed.check(made.path, made.path, python=PYTHON)
    assert not report.ok
    assert "w2_weight" in report.facts["errors"][0]
