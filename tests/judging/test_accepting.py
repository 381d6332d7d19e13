"""Acceptance beside a target: against plain implementations, in intervals over windows, never below its bound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from drafts import changed
from slow_twins import accepting as slow

import mtpforge
from mtpforge.checkpoint import open_checkpoint
from mtpforge.judging import acceptance, verdicts
from mtpforge.judging.accepting import Drawn, Estimate, estimate
from mtpforge.nextn import layer as layers
from mtpforge.nextn.embedding import embedding
from mtpforge.nextn.heads import head_of
from mtpforge.nextn.hessians import one_thread
from mtpforge.nextn.target import open_target
from mtpforge.nextn.whole import Whole, drawn, likeliest, whole

DATA = Path(__file__).parents[1] / "data"
STORED = json.loads((DATA / "acceptance" / "tinyglm.json").read_text())
K, PROMPT = STORED["k"], STORED["prompt"]


@pytest.fixture(scope="module")
def served(tinyglm):
    """The target in memory, what drafts are measured with, and both of its texts."""
    checkpoint = open_checkpoint(str(tinyglm("awq-int4")))
    head = head_of(checkpoint, hidden_size=128)
    with one_thread():
        held, prompts = whole(open_target(checkpoint), head), torch.tensor(STORED["prompts"])
        draws = (drawn(STORED["temperature"], STORED["seed"]), likeliest)
        ids = [held.continued(prompts, STORED["generated"], draw) for draw in draws]
        texts = [acceptance.Text(each, held.states(each), PROMPT) for each in ids]
    return acceptance.Beside(embedding(checkpoint, checkpoint, 128), head, K), *texts


@pytest.mark.parametrize("name", ["bf16", "nvfp4"])
def test_numbers_are_those_of_a_plain_implementation(tinyglm, served, name):
    beside, by_chance, by_size = served
    block = layers.block(open_checkpoint(str(tinyglm(name))))
    with one_thread():
        (sampled,) = acceptance.sampled([block], beside, by_chance, STORED["temperature"])
        greedy = acceptance.greedy(block, beside, by_size)
    stored = STORED["drafts"][f"{name}, index share True"]
    for found, wanted in ((sampled, stored["sampling"]), (greedy, stored["greedy"])):
        for number, positions in enumerate(found.positions, 1):
            assert [float(positions.mean()), float(positions.std() / 5**0.5)] == pytest.approx(
                wanted[f"position_{number}"], abs=1.01e-4
            )
        assert float(found.length.mean()) == pytest.approx(wanted["mean_length"][0], abs=1.01e-4)
        assert estimate(found.length).half_width == pytest.approx(1.96 * wanted["mean_length"][1], abs=2e-4)


def test_every_window_is_the_twins(tinyglm, served):
    beside, by_chance, _ = served
    target = slow.Target(tinyglm("awq-int4"))
    with torch.inference_mode():
        states, _ = target.forward(by_chance.token_ids)
        draft = slow.Draft(tinyglm("bf16"), target)
        wanted = slow.mean_length(target, draft, by_chance.token_ids, states, PROMPT, K)
    block = layers.block(open_checkpoint(str(tinyglm("bf16"))))
    (found,) = acceptance.sampled([block], beside, by_chance, 1.0)
    torch.testing.assert_close(by_chance.states, states, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.length, wanted.double(), rtol=1e-4, atol=1e-4)


def test_rows_are_measured_so_many_at_a_time_as_the_memory_allows(tinyglm, served, monkeypatch):
    beside, by_chance, _ = served
    blocks = [layers.block(open_checkpoint(str(tinyglm(name)))) for name in ("bf16", "nvfp4")]
    text = acceptance.Text(by_chance.token_ids[:2], by_chance.states[:2], PROMPT)
    given, logits = [], type(beside.head).logits
    monkeypatch.setattr(type(beside.head), "logits", lambda *a: given.append(sum(map(len, a[1]))) or logits(*a))
    together = acceptance.sampled(blocks, beside, text, 1.0)
    calls = len(given)
    monkeypatch.setattr(acceptance, "_MOST", 8 * beside.head.n_tokens * 5 * K * 3)  # five rows of target and drafts
    apart = acceptance.sampled(blocks, beside, text, 1.0)
    assert (calls, max(given[calls:])) == (2, 5 * K * 3)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(other.positions, one.positions, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other.variation, one.variation, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def measured(tinyglm, made):
    return mtpforge.accept(
        made("bf16"), tinyglm("awq-int4"), DATA / "tinyglm/eval.txt", compare=[made("int4-g32-asym")],
        windows=4, length=24, generate=12, k=2, workers=1,
    )  # fmt: skip


def test_differences_are_paired_and_no_first_token_falls_below_its_bound(measured):
    dense, int4 = (draft.sampled for draft in measured.drafts)
    assert measured.n_windows == 4
    assert (dense.against_first, dense.variation) == (None, 0)
    assert int4.against_first.mean == pytest.approx(int4.tokens.mean - dense.tokens.mean)
    assert int4.against_first.half_width < int4.tokens.half_width / 2
    assert dense.positions[0].mean - int4.variation <= int4.positions[0].mean < dense.positions[0].mean + int4.variation
    assert int4.tokens.mean == pytest.approx(1 + sum(each.mean for each in int4.positions))
    assert measured.report.ok


@pytest.mark.slow
def test_command_prints_what_the_call_returns(run, measured, tinyglm, made):
    arguments = ["--target", str(tinyglm("awq-int4")), "--text", str(DATA / "tinyglm/eval.txt"), "--k", "2"]
    arguments += ["--windows", "4", "--length", "24", "--generate", "12", "--workers", "3"]
    ran = run("accept", str(made("bf16")), *arguments, "--compare", str(made("int4-g32-asym")))
    assert ran.code == 0
    for draft in measured.drafts:
        assert f"{draft.sampled.tokens}" in ran.out
        assert f"{draft.greedy.tokens}" in ran.out
    least = measured.drafts[0].sampled.positions[0].mean - measured.drafts[1].sampled.variation
    assert f"= {least:.4f} of its first tokens are accepted" in ran.out


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"length": 10**7}, "10,000,012 tokens are more than the target takes"),
        ({"temperature": 0.0}, "temperature 0 draws nothing"),
        ({"generate": 3}, "3 tokens leave no cycle of 2 steps"),
    ],
)
def test_what_leaves_nothing_to_measure_is_a_usage_error(tinyglm, made, options, what):
    with pytest.raises(mtpforge.MtpforgeError) as caught:
        mtpforge.accept(
            made("bf16"), tinyglm("awq-int4"), DATA / "tinyglm/eval.txt", **{"k": 2, "generate": 12, **options}
        )
    assert (caught.value.what, caught.value.code) == (what, 2)


def test_one_window_has_no_interval_and_an_empty_text_is_called_so(run, tinyglm, made, tmp_path):
    sides = (str(made("bf16")), "--target", str(tinyglm("awq-int4")), "--length", "20", "--generate", "6")
    ran = run("accept", *sides, "--text", str(DATA / "tinyglm/eval.txt"), "--windows", "1")
    assert ran.code in (0, 1)
    assert "1 window of 20 tokens" in ran.out
    assert "greedy, 1 window\n" in ran.out
    assert "interval" not in ran.out
    (tmp_path / "empty.txt").write_text("")
    assert run("accept", *sides, "--text", str(tmp_path / "empty.txt")).err.startswith("error: the text is empty\n")


@pytest.mark.parametrize("kind", ["none", "cut"])
def test_layer_that_cannot_be_run_is_refused_before_the_target_goes_on(run, tinyglm, made, tmp_path, monkeypatch, kind):
    def lacking(tensors):
        del tensors["model.layers.3.self_attn.o_proj.weight"]

    def goes_on(*_, **__):
        raise AssertionError("the target was asked to go on")

    monkeypatch.setattr(Whole, "continued", goes_on)
    broken = tinyglm("awq-int4") if kind == "none" else changed(made("bf16"), tmp_path / "cut", lacking)
    text = ("--target", str(tinyglm("awq-int4")), "--text", str(DATA / "tinyglm/eval.txt"), "--generate", "12")
    for words in ((str(broken),), (str(made("bf16")), "--compare", str(broken))):
        ran = run("accept", *words, *text)
        assert ran.code == 3
        if kind == "none":
            assert ran.err.startswith(f"error: {broken} holds no MTP layer\n")
            assert ran.err.splitlines()[-1] == " hint: name a draft: `mtpforge build --target CKPT` makes one"
        else:
            assert ran.err.startswith("error: `self_attn.o_proj` of the MTP layer is missing\n")
            assert ran.err.splitlines()[-1].startswith(" hint: build or download the draft again; `mtpforge verify")


@pytest.mark.parametrize(
    ("reached", "verdict"),
    [
        ((0.84, 0.66), ["passed"]),
        ((0.6, 0.4), ["warning"]),
        ((0.8, 0.3), ["passed", "warning"]),
        ((0.04, 0.0), ["failed"]),
    ],
)
def test_verdicts_are_by_what_healthy_drafts_have(reached, verdict):
    found = Drawn(tuple(Estimate(each, 0.01) for each in reached), Estimate(1 + sum(reached), 0.02), None, None)
    checks = list(verdicts.of_acceptance("draft", found))
    assert [check.verdict for check in checks] == verdict


@pytest.mark.slow
def test_drafts_by_total_variation_are_drafts_by_acceptance(tinyglm, made):
    kept = tuple(n for n in range(16) if n not in (2, 7, 8, 13))
    folders = [made(n) for n in ("bf16", "fp8-block128", "nvfp4-w4a16", "int4-g32-asym", "int3", "int2")]
    folders.append(made("bf16", kept))
    text, beside = DATA / "tinyglm/eval.txt", folders[1:]
    found = mtpforge.accept(folders[0], tinyglm("awq-int4"), text, compare=beside, windows=16, generate=48, length=96)
    dense = found.drafts[0].sampled.positions[0].mean
    first = [(draft.sampled.variation, draft.sampled.positions[0].mean) for draft in found.drafts]
    for variation, accepted in first:
        assert dense - variation <= accepted + 1e-9
    far, near = [drawn for drawn in first if drawn[0] > 0.06], [drawn for drawn in first if drawn[0] <= 0.06]
    assert len(far) == 3  # two and three bits, and the pruned one
    assert max(accepted for _, accepted in far) < min(accepted for _, accepted in near)
    variations = [variation for variation, _ in first[:6]]
    assert variations[0] == 0 < variations[1] < variations[2] < variations[4] < variations[5]
