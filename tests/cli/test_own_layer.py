"""Why a draft is built of a target that carries the layer itself."""

from __future__ import annotations

import json
import shutil

from mtpforge.checkpoint import open_checkpoint
from mtpforge.drafting import remarks
from mtpforge.source_choice import Choice


def test_build_says_why_a_layer_that_loads_needs_a_draft_all_the_same(run, in_folder, tinyglm):
    target = shutil.copytree(tinyglm("int4-int8mix"), in_folder / "target")
    assert "loads as it is   passed" in run("inspect", "target").out
    why = (
        "a draft of it is needed: the target carries an MTP layer, but its config has no `moe_router_dtype`: vLLM would"
        " run the layer's router in BF16, and no override reaches it\n"
    )
    assert f"at the precision that it asks for\n        {why}" in run("build", "--target", "target", "--dry-run").out
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "moe_router_dtype": "float32"}))
    said = run("build", "--target", "target", "--standalone", "--dry-run").out
    assert "the target's own layer loads as it is\n" in said
    assert "a draft of it is needed" not in said


def test_one_thing_is_told_of_many_that_are_wrong(tinyglm):
    target = open_checkpoint(str(tinyglm("fp8")))
    for spoiled, said in ((("a",), "a"), (("a", "b", "c"), "a; and 2 more")):
        told = [str(each) for each in remarks.of_choice(Choice(target, "why", (), spoiled=spoiled))]
        assert told == [f"source  {target.label}   why", f"        a draft of it is needed: {said}"]
