"""prune-plan and the options of build about experts, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from golden_text import GOLDEN, compare, tidy
from pruning.layers import pruned_copy

BY_BIAS = [0, 1, 3, 5, 6, 7, 8, 9, 11, 12, 14, 15]


@pytest.fixture
def pair(tinyglm):
    return "--target", str(tinyglm("awq-int4-12experts")), "--source", str(tinyglm("bf16"))


@pytest.fixture
def stale(tinyglm, tmp_path):
    """A target whose config still counts the experts from before it was pruned."""
    config = json.loads((tinyglm("awq-int4-12experts") / "config.json").read_text())
    folder = tmp_path / "stale"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"n_routed_experts": 12, "num_experts": 16}))
    return folder


def test_prune_plan_for_people(run, in_folder, pair, tinyglm):
    ran = run("prune-plan", *pair, "--compare", "aimer")
    assert ran.code == 0
    places = {"demo": tinyglm("bf16").parent, "models": tinyglm("awq-int4-12experts").parent}
    compare(GOLDEN / "output" / "prune-plan.txt", tidy(f"{ran.out}--- stderr\n{ran.err}", **places))
    assert not list(in_folder.iterdir())


def test_document_holds_the_list_and_the_scores_by_method(run, pair):
    document = run("prune-plan", *pair, "--json").document
    assert document["kept"] == BY_BIAS
    assert {name: len(scores) for name, scores in document["scores"].items()} == {"bias": 16, "router-norm": 16}
    assert document["choices"]["bias"] == BY_BIAS
    assert document["agreement"]["bias"] == {"bias": 4, "router-norm": 2}


@pytest.mark.parametrize("form", ["-q", "--json"])
def test_what_it_prints_is_a_list_that_build_takes(run, in_folder, pair, form):
    (in_folder / "keep.json").write_text(run("prune-plan", *pair, "--prune-by", "aimer", form).out)
    document = run("build", *pair, "--dry-run", "--keep-experts", "keep.json", "--json").document
    assert document["plan"]["kept_experts"] == [0, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 14]


def test_checkpoint_pruned_before_is_a_list_too(run, in_folder, pair, tinyglm):
    kept = [0, 2, 3, 4, 6, 7, 8, 9, 10, 12, 14, 15]
    pruned_copy(tinyglm("bf16"), in_folder / "copy", kept)
    ran = run("build", *pair, "--dry-run", "--keep-experts", "copy", "--json")
    assert ran.document["plan"]["kept_experts"] == kept


def test_dry_run_says_before_the_engine_does_that_all_experts_are_too_many(run, in_folder, pair):
    ran = run("build", *pair, "--dry-run", "--experts", "keep")
    assert ran.code == 3
    assert ran.err.startswith("error: the layer has 16 experts, the target 12")
    assert "expert 12 of the draft would end the load with a KeyError" in ran.err
    assert "`--experts match`" in ran.err
    assert run("build", *pair, "--dry-run").code == 0


def test_stale_target_gets_its_draft_and_no_command(run, in_folder, stale, tinyglm):
    ran = run("build", "--target", stale, "--source", tinyglm("bf16"), "-o", "draft")
    assert ran.code == 0
    assert "vllm serve" not in ran.out
    assert "no command serves this target before its config.json is mended" in ran.err
    assert "c.pop(" in ran.err
    config = json.loads((in_folder / "draft" / "config.json").read_text())
    assert (config["n_routed_experts"], "num_experts" in config) == (12, False)
    served = run("serve", "draft", "--target", stale, "--print")
    assert served.code != 0
    assert "vllm serve" not in served.out
    document = run("build", "--target", stale, "--source", tinyglm("bf16"), "-o", "other", "--json").document
    assert (document["ok"], document["serve"]) == (True, None)


def test_number_that_is_none_is_refused(run, pair):
    ran = run("build", *pair, "--experts", "0")
    assert ran.code == 2
    assert "`0` is no number of experts" in ran.err


def test_choosing_by_bias_needs_no_torch(pair, in_folder):
    code = (
        "import sys; from mtpforge.cli import main;"
        f"code = main(['build', *{pair!r}, '--dry-run', '-q']);"
        "print(code, [m for m in ('torch', 'transformers', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
