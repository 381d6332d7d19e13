"""A second engine, of which nothing but its record is known: whatever asks an engine asks the one that was named."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from drafts import unpruned

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.engines.standalone import standalone
from mtpforge.engines.vllm import VLLM
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.report import Check, Report, Trap
from mtpforge.scheme import load
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


def by_the_draft(target, draft_config, family):
    """Demand by the draft's own block, and refuse every block; of a draft that is still to be made, all."""
    if draft_config is not None:
        raise MtpforgeError("no such block", why="for a reason", fix="leave it out")
    return VLLM.demands(target, None, family)


def test_a_draft_whose_own_block_the_engine_refuses_does_not_fit(run, demo, tinyglm, other):
    other(demands=by_the_draft)
    draft, target = demo / "out" / "demo", tinyglm("awq-int4")
    ran = run("verify", str(draft), "--target", str(target), "--engine", "other", "--json")
    (said, *rest) = ran.document["report"]["checks"]
    assert (ran.code, said["name"], said["verdict"]) == (1, "scheme", "failed")
    assert said["detail"] == "Other refuses it: no such block; for a reason"
    assert said["fix"] == "leave it out"
    assert [check["verdict"] for check in rest] == ["not checked"]
    assert ran.document["report"]["summary"] == "does not fit: Other would not build it"
    ran = run("serve", str(draft), "--target", str(target), "--engine", "other", "--print")
    assert (ran.code, "cause: scheme: Other refuses it: no such block; for a reason" in ran.err) == (1, True)


def test_a_target_that_the_engine_refuses_is_no_fault_of_the_draft(run, demo, tinyglm, other):
    def demands(*_):
        raise MtpforgeError("no such target", why="for a reason")

    other(demands=demands)
    ran = run("verify", str(demo / "out" / "demo"), "--target", str(tinyglm("awq-int4")), "--engine", "other")
    assert (ran.code, "error: no such target\n" in ran.err, ran.out) == (3, True, "")


def next_command(ran) -> list[str]:
    (line,) = (line for line in ran.err.splitlines() if line.startswith("Next: "))
    return shlex.split(line.removeprefix("Next: "))[1:]


def test_each_next_step_is_about_the_same_engine_and_ranks(run, in_folder, tinyglm, other, monkeypatch):
    """From inspect to serve by what each command says is next, `--engine` and `--tp` typed once."""
    monkeypatch.setenv("MTPFORGE_BUILD_CHECK", "off")
    passed = Report("validate", (Check("engine loads the draft", "passed", ""),))
    other(ask=lambda *_: passed)
    asked = ["--engine", "other", "--tp", "2"]
    target, source = str(tinyglm("awq-int4")), str(tinyglm("nvfp4"))
    build = next_command(run("inspect", target, *asked))
    assert build == ["build", "--target", target, "--source", source, *asked]
    validate = next_command(run(*build, "-o", "draft"))
    assert validate == ["validate", "draft", "--target", target, "--source", source, *asked]
    verified = next_command(run("verify", "draft", "--target", target, "--source", source, *asked))
    assert verified == validate
    serve = next_command(run(*verified))
    assert serve == ["serve", "draft", "--target", target, *asked]
    assert run(*serve, "--print").code == 0


def test_prune_plan_leads_to_a_build_for_its_engine(run, in_folder, tinyglm, other):
    other()
    pair = ["--target", str(tinyglm("awq-int4-12experts")), "--source", str(tinyglm("bf16"))]
    build = next_command(run("prune-plan", *pair, "--engine", "other", "--experts", "8"))
    assert build == ["build", *pair, "--engine", "other", "--experts", "8", "--prune-by", "bias"]
    assert run(*build, "--dry-run").code == 0


def test_a_draft_is_made_anew_for_the_engine_and_ranks_that_it_was_judged_by(run, demo, tinyglm, in_folder, other):
    other()
    asked = ["--engine", "other", "--tp", "2", "--ep"]
    pair = [str(demo / "out" / "demo"), "--target", str(tinyglm("bf16"))]
    ran = run("verify", *pair, *asked)
    assert f"mtpforge build --target {tinyglm('bf16')} --standalone {shlex.join(asked)}`" in ran.err
    assert ran.code == 1


def test_a_layer_that_does_not_load_leads_to_a_build_for_the_engine(run, in_folder, tinyglm, other):
    other()
    unpruned(tinyglm("bf16"), in_folder / "target")
    for ran in (
        run("inspect", "target", "--engine", "other"),
        run("serve", "target", "--target", "target", "--engine", "other", "--print"),
    ):
        assert "`mtpforge build --target target --engine other`" in ran.err, ran


def test_who_asks_for_the_scheme_is_the_engine_s_business(run, demo, tinyglm, other):
    other(decides="draft")
    words = ["verify", str(demo / "out" / "demo"), "--target"]
    ours = run(*words, str(tinyglm("awq-int4")), "--engine", "other").out.splitlines()[0]
    assert ours.startswith("fits: this draft is int4-g32-asym, as its own config asks")
    assert run(*words, str(tinyglm("awq-int4"))).out.startswith("fits: this draft is int4-g32-asym, as the target asks")


def test_a_plain_layer_has_the_fields_of_every_engine_and_the_default_one_s_values(tinyglm):
    def draft_config(*given):
        return VLLM.draft_config(*given) | {"dtype": "float64", "more": 1}

    source = open_checkpoint(str(tinyglm("bf16")))
    given = source, source.config, family_of(source.config), load("bf16"), 16
    both = standalone((VLLM, replace(VLLM, draft_config=draft_config))).draft_config(*given)
    assert both == VLLM.draft_config(*given) | {"more": 1}
    assert list(both) == sorted(both)
    assert both["dtype"] == "bfloat16"
    other = replace(VLLM, draft_config=draft_config, runs=lambda _: False)
    assert standalone((VLLM, other)).draft_config(*given) == VLLM.draft_config(*given)


def test_nothing_is_told_of_the_target_where_the_draft_decides(run, in_folder, tinyglm, other, monkeypatch):
    """Its own block says the scheme that was asked for: the target stays as it is, and so does the command."""
    monkeypatch.setenv("MTPFORGE_BUILD_CHECK", "off")

    def demands(target, draft_config, family):
        return VLLM.stated(draft_config, family) if draft_config else load("bf16")

    other(decides="draft", demands=demands)
    pair = ["--target", str(tinyglm("bf16")), "--source", str(tinyglm("bf16"))]
    ran = run("build", *pair, "--engine", "other", "--scheme", "int4-g32-asym", "-o", "draft", "--json")
    assert (ran.code, ran.document["manifest"]["restated"]) == (0, False)
    assert "int4-g32-asym, as its own config asks" in ran.document["report"]["summary"]
    assert "--hf-overrides" not in ran.document["serve"]
    assert run("verify", "draft", "--target", str(tinyglm("bf16")), "--engine", "other").code == 0


def test_a_draft_for_both_is_not_warned_of_the_block_that_the_second_reads(run, in_folder, tinyglm):
    ran = run("build", "--target", str(tinyglm("awq-int4")), "--source", str(tinyglm("nvfp4")), "--engine", "both",
              "--scheme", "nvfp4", "-o", "made")  # fmt: skip
    assert ran.code == 0
    assert "packed_modules_mapping" not in ran.out + ran.err
