"""A draft that was published is judged as the one on disk: what its manifest says is read over the network too."""

from __future__ import annotations

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.planning import plan
from mtpforge.verifying import verify


def test_published_draft_with_searched_scales_is_judged_by_its_manifest(hub, tinyglm, tmp_path):
    source, target = open_checkpoint(str(tinyglm("bf16"))), open_checkpoint(str(tinyglm("awq-int4")))
    made = plan(source, target, scales="mse")
    out = build(made, {"source": source, "target": target}, tmp_path / "draft", check="off").path
    hub.add("org/draft", out)
    reports = [verify(open_checkpoint(draft), target, source) for draft in (str(out), "org/draft")]
    here, there = ({check.name: check.verdict for check in report.checks} for report in reports)
    assert here["manifest"] == "passed"
    assert there == here
    assert reports[0].facts == reports[1].facts
