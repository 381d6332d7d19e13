"""`--inputs` of build and prune-plan, as it is typed: what it changes, what is recorded, where it has no effect."""

from __future__ import annotations

import hashlib
import json

import pytest
from nextn.calibration import captured, twin, write
from pruning.layers import pruned_copy
from slow_twins import decoder


@pytest.fixture
def pair(tinyglm):
    return "--target", str(tinyglm("awq-int4-12experts")), "--source", str(tinyglm("bf16"))


@pytest.fixture
def inputs(tinyglm, in_folder):
    write(in_folder / "calib.safetensors", captured(tinyglm("bf16")))
    return "--inputs", "calib.safetensors"


@pytest.fixture(scope="module")
def by_reap(tinyglm):
    """The twelve with the highest saliency, by the slow twin."""
    tensors, config = twin(tinyglm("bf16"))
    w, rows = decoder.layer_of(tensors, 3), []
    for ids, positions, hidden in captured(tinyglm("bf16")):
        entered = decoder.mtp_rows(tensors, config, ids, hidden.double(), positions)
        rows += decoder.attended(w, config, entered, positions[:-1])[0]
    reap, frequency = decoder.saliency(w, config, rows)
    kept = [sorted(sorted(range(16), key=lambda n: (-s[n], n))[:12]) for s in (reap, frequency)]
    assert kept[0] != kept[1]
    return kept


def test_build_prunes_by_reap_and_records_method_and_inputs(run, in_folder, pair, inputs, by_reap):
    ran = run("build", *pair, *inputs, "-o", "draft")
    assert ran.code == 0
    assert "inputs  calib.safetensors   111 tokens in 2 sequences of the slow twin" in ran.out
    assert "experts 12 of 16   by reap, lowest scores dropped" in ran.out
    manifest = json.loads((in_folder / "draft" / "mtpforge.json").read_text())
    assert manifest["kept_experts"] == by_reap[0]
    sha256 = hashlib.sha256((in_folder / "calib.safetensors").read_bytes()).hexdigest()
    assert manifest["kept_by"] == {"method": "reap", "inputs": {"sha256": sha256, "tokens": 111}}


def test_inputs_of_another_target_are_said_to_be(run, in_folder, pair, inputs, tinyglm):
    says = "captured from another target than awq-int4-12experts#"
    assert says in run("prune-plan", *pair, *inputs).err
    (in_folder / "text.txt").write_text("the cat sat on the mat.\n" * 40)
    target = tinyglm("awq-int4-12experts")
    assert run("capture", "--target", target, "--text", "text.txt", "--tokens", "60", "-o", "own").code == 0
    assert says not in run("prune-plan", *pair, "--inputs", "own").err


@pytest.mark.parametrize("other", ["--inputs", "--prune-by", "--experts", "--target"])
def test_a_value_that_is_given_twice_is_refused(run, pair, inputs, other):
    once = {"--inputs": inputs, "--prune-by": ("--prune-by", "reap"), "--experts": ("--experts", "12"), "--target": ()}
    more = once[other] or pair[:2]
    words = ("prune-plan", *pair, *inputs, *([] if other in ("--inputs", "--target") else more))
    assert run(*words).code == 0
    ran = run(*words, *more)
    assert ran.code == 2
    assert f"`{other}` is given twice" in ran.err


def test_plan_is_the_one_of_the_list_that_the_inputs_stand_for(run, in_folder, pair, inputs, by_reap):
    """What chose the experts decides no byte: the digest names the list alone."""
    (in_folder / "keep.json").write_text(json.dumps(by_reap[1]))
    asked = (inputs, ("--keep-experts", "keep.json"))
    documents = [
        run(
            "build", *pair, "--dry-run", "--json", *(("--prune-by", "frequency") if way is inputs else ()), *way
        ).document
        for way in asked
    ]
    assert [document["plan"]["kept_experts"] for document in documents] == [by_reap[1]] * 2
    assert documents[0]["digest"] == documents[1]["digest"]
    assert [document["plan"]["facts"]["kept_by"]["method"] for document in documents] == ["frequency", "file"]


def test_unpruned_plan_says_nothing_of_experts(run, tinyglm):
    whole = ("--target", tinyglm("awq-int4"), "--source", tinyglm("bf16"))
    document = run("build", *whole, "--dry-run", "--json").document
    assert document["plan"]["kept_experts"] is None
    assert "kept_by" not in document["plan"]["facts"]


def test_prune_plan_shows_both_methods_and_hands_the_inputs_on(run, pair, inputs, by_reap):
    ran = run("prune-plan", *pair, *inputs)
    assert ran.code == 0
    assert f"of {16 - 12} dropped, in common   bias   router-norm   frequency   reap" in ran.out
    assert ran.err.rstrip().endswith("--prune-by reap --inputs calib.safetensors")
    document = run("prune-plan", *pair, *inputs, "--json").document
    assert (document["kept"], document["method"]) == (by_reap[0], "reap")
    assert document["choices"]["frequency"] == by_reap[1]
    assert document["inputs"]["tokens"] == 111
    quiet = run("prune-plan", *pair, *inputs, "-q")
    assert json.loads(quiet.out) == by_reap[0]


def test_prune_plan_compares_a_choice_made_without_them(run, pair, inputs):
    document = run("prune-plan", *pair, *inputs, "--prune-by", "bias", "--json").document
    assert (document["method"], "reap" in document["scores"]) == ("bias", True)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--prune-by", "bias"), "`--prune-by bias` does not look at inputs"),
        (("--keep-experts", "keep.json"), "`--keep-experts` names the experts, `--inputs` would choose them"),
        (("--experts", "keep"), "`--experts keep` keeps all, `--inputs` would choose those that go"),
    ],
)
def test_inputs_that_would_change_nothing_are_refused(run, in_folder, pair, inputs, more, what):
    (in_folder / "keep.json").write_text("[0, 1, 2, 3]")
    ran = run("build", *pair, *inputs, *more, "--dry-run")
    assert ran.code == 2
    assert ran.err.startswith(f"error: {what}\nwhere: option `--inputs`\n hint: leave one of the two out")


def test_inputs_where_all_experts_stay_are_refused_before_they_are_run(run, tinyglm, inputs):
    whole = ("--target", tinyglm("awq-int4"), "--source", tinyglm("bf16"))
    ran = run("build", *whole, *inputs, "--dry-run")
    assert ran.code == 2
    assert ran.err.startswith("error: all 16 experts stay, `--inputs` has nothing to choose")
    assert " hint: leave `--inputs` out, or ask for fewer experts: `--experts N`" in ran.err
    assert "experts  100 %" not in ran.err
    own = run("build", "--target", tinyglm("bf16"), *inputs)  # whose own layer loads as it is
    assert own.err.startswith("error: all 16 experts stay")
    fewer = run("build", *whole, *inputs, "--dry-run", "--experts", "8", "--json")
    assert len(fewer.document["plan"]["kept_experts"]) == 8


def test_method_without_its_inputs_says_how_to_give_some(run, pair):
    ran = run("build", *pair, "--prune-by", "reap", "--dry-run")
    assert ran.code == 2
    assert "error: `reap` needs inputs to score experts" in ran.err
    assert " hint: `--inputs FILE`; `--prune-by bias`" in ran.err


@pytest.mark.parametrize("command", [("build", "--dry-run"), ("prune-plan",)])
@pytest.mark.parametrize("method", ["reap", "frequency"])
def test_method_without_its_inputs_is_refused_where_all_experts_stay_too(run, in_folder, tinyglm, command, method):
    ran = run(*command, "--target", tinyglm("awq-int4"), "--source", tinyglm("bf16"), "--prune-by", method)
    assert ran.code == 2
    assert f"error: `{method}` needs inputs to score experts\nwhere: option `--prune-by`\n" in ran.err


def test_method_that_had_nothing_to_choose_is_said(run, in_folder, pair, tinyglm):
    whole = ("--target", tinyglm("awq-int4"), "--source", tinyglm("bf16"))
    said = "experts all 16 stay: `--prune-by aimer` has nothing to choose\n"
    assert said in run("build", *whole, "--prune-by", "aimer", "--dry-run").out
    assert "nothing to choose" not in run("build", *whole, "--dry-run").out
    assert "nothing to choose" not in run("build", *pair, "--prune-by", "bias", "--dry-run").out


def test_inputs_of_another_model_are_refused(run, in_folder, pair, tinyglm):
    ((ids, positions, hidden), *_) = captured(tinyglm("bf16"))
    write(in_folder / "narrow.safetensors", [(ids, positions, hidden[:, :64].contiguous())])
    ran = run("build", *pair, "--inputs", "narrow.safetensors", "--dry-run")
    assert ran.code == 3
    assert "error: the inputs were captured from another model" in ran.err


def test_source_and_target_without_an_embedding_are_refused(run, in_folder, inputs, tinyglm):
    pruned_copy(tinyglm("bf16"), in_folder / "layer", range(16))
    config = json.loads((tinyglm("awq-int4-12experts") / "config.json").read_text())
    (in_folder / "served").mkdir()
    (in_folder / "served" / "config.json").write_text(json.dumps(config))
    ran = run("build", "--target", "served", "--source", "layer", *inputs, "--dry-run")
    assert ran.code == 3
    assert "error: the token embedding is missing" in ran.err


def test_no_file_there(run, pair):
    ran = run("build", *pair, "--inputs", "absent.safetensors", "--dry-run")
    assert ran.code == 3
    assert "absent.safetensors" in ran.err


def test_a_text_is_no_captured_inputs_and_nothing_to_download(run, pair, in_folder):
    (in_folder / "README.md").write_text("# A project\n" * 9)
    ran = run("build", *pair, "--inputs", "README.md", "--dry-run")
    assert (ran.code, "download" in ran.err) == (3, False)
    assert "error: the file holds no calibration inputs\nwhere: README.md\n" in ran.err
    assert "hint: make it again with `mtpforge capture`" in ran.err
