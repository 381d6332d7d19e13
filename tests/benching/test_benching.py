"""Servers that are rigged, one way each: what is wrong is named."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest
from benching.small import ENOUGH, FEW, HEALTHY, WORDS, checks, detail
from openai_server import AsSglang, by_chance, serving

import mtpforge


def test_healthy_draft_is_measured_by_the_counters_of_the_server():
    with serving(3, HEALTHY) as server:
        found = mtpforge.bench(server.url, **ENOUGH)
        counted = server.counted
        warm = [body for body in server.asked if body["seed"] > 100]
        asked = [body for body in server.asked if body["seed"] <= 100]
    assert (len(warm), len(asked)) == (1, 4)  # warmed up by as many as there will be at a time
    (total,) = found.totals
    assert total.n_prompts == 4
    # the warm-up is in the server's counters, and not in ours
    assert 0 < total.n_rounds < counted.rounds
    assert len(found.cells) == 1
    assert found.cells[0].length == total.length
    assert total.length.mean == pytest.approx(1 + sum(total.positions))
    assert found.k == 3
    assert checks(found)["acceptance"] == "passed"
    assert checks(found)["speed"] == checks(found)["answers"] == checks(found)["made-up acceptance"] == "not checked"
    assert found.report.exit_code == 0


def test_rounds_are_those_of_the_measured_requests_alone():
    """An independent count: what each measured request was given, from the same seeds."""
    with serving(3, HEALTHY) as server:
        found = mtpforge.bench(server.url, **FEW)
        asked = [body for body in server.asked if body["seed"] <= 100]
    rounds = accepted = 0
    for body in asked:
        left, chances = body["max_tokens"] - 1, HEALTHY(body)
        while left > 0:
            taken = next(chances)
            rounds, accepted, left = rounds + 1, accepted + taken, left - taken - 1
    (total,) = found.totals
    assert (total.n_rounds, total.length.mean) == (rounds, pytest.approx(1 + accepted / rounds))


def test_nothing_accepted_fails_and_names_causes_in_their_order(run):
    with serving(3, by_chance(0.0, 0.0, 0.0)) as server:
        ran = run("bench", server.url, *WORDS[:-1], "40")
    assert ran.code == 1
    assert "0.000 of first tokens accepted; 1.00" in ran.out
    assert "likely causes, in this order, and what tells:" in ran.out
    causes = ran.out[ran.out.index("likely causes") :].splitlines()[1:]
    assert "mtpforge verify DRAFT --target CKPT --source SOURCE" in causes[0]
    assert "not initialized from checkpoint" in causes[1]
    assert len(causes) == 8


def test_collapse_at_the_second_token_is_named(run):
    with serving(3, by_chance(0.9, 0.1, 0.05)) as server:
        found = mtpforge.bench(server.url, **ENOUGH)
    assert checks(found)["later tokens"] == "warning"
    assert found.totals[0].conditional[1] < 0.5
    assert "the state before the last norm goes on" in found.causes[0].what
    assert checks(found)["acceptance"] == "passed"


@pytest.mark.parametrize("chances", [(0.0, 0.0, 0.0), (0.9, 0.1, 0.05), (0.5, 0.3, 0.2)])
def test_few_rounds_condemn_no_layer(chances):
    with serving(3, by_chance(*chances)) as server:
        found = mtpforge.bench(server.url, **FEW | {"prompts": 2})
    (total,) = found.totals
    assert (checks(found)["acceptance"], found.causes) == ("not checked", ())
    assert "later tokens" not in checks(found)
    assert f"{total.n_rounds} rounds are too few to judge it, 100 are not" in detail(found, "acceptance")
    assert found.report.exit_code == 0


def loaded(chances, prompts=32, **more):
    """A server that is healthy alone, and accepts by these chances beside others; the same prompts and seeds."""

    def accepts(body):
        alone, beside = HEALTHY(body), by_chance(*chances)(body)
        while True:
            yield next(beside if server.counted.running > 1 else alone)

    with serving(3, accepts, lambda _: 0.001) as server:
        asked = {"concurrency": [1, 4], "content": ["chat"], "prompts": prompts, "generate": 60}
        return mtpforge.bench(server.url, **asked | more)


def test_acceptance_that_falls_under_load_is_named():
    found = loaded((0.5, 0.2, 0.1))
    assert checks(found)["acceptance under load"] == "warning"
    assert " tokens a round at 4 at a time, from 3." in detail(found, "acceptance under load")
    assert (checks(found)["acceptance"], found.causes, found.report.exit_code) == ("passed", (), 0)


def test_nothing_accepted_under_load_fails_with_causes_of_its_own():
    found = loaded((0.0, 0.0, 0.0))
    assert checks(found)["acceptance"] == "passed"
    assert checks(found)["acceptance under load"] == "failed"
    assert " tokens a round at 4 at a time, from 3." in detail(found, "acceptance under load")
    assert found.report.exit_code == 1
    assert "captured for larger batches" in found.causes[0].what
    assert "`--enforce-eager`" in found.causes[0].check
    # what spoils the layer alone too is none of them
    assert not any("source" in cause.what or "never filled" in cause.what for cause in found.causes)


def test_nothing_accepted_under_load_condemns_weights_that_nobody_saw_alone():
    found = loaded((0.0, 0.0, 0.0), prompts=16, generate=12)
    assert checks(found)["acceptance"] == "not checked"
    assert checks(found)["acceptance under load"] == "failed"
    assert "captured for larger batches" in found.causes[0].what
    assert "mtpforge verify DRAFT" in found.causes[1].check


def test_nothing_accepted_at_any_load_is_told_once():
    with serving(3, by_chance(0.0, 0.0, 0.0)) as server:
        found = mtpforge.bench(server.url, **ENOUGH | {"concurrency": [1, 2], "generate": 40, "prompts": 8})
    assert checks(found)["acceptance"] == "failed"
    assert "acceptance under load" not in checks(found)
    assert "mtpforge verify DRAFT" in found.causes[0].check


def test_the_same_prompts_at_several_numbers_of_requests_count_once():
    """As many copies of one measurement make no interval narrower."""
    with serving(3, HEALTHY) as server:
        found = mtpforge.bench(server.url, **ENOUGH | {"concurrency": [2, 1], "prompts": 8})
        once = mtpforge.bench(server.url, **ENOUGH | {"concurrency": [1], "prompts": 8})
    assert detail(found, "acceptance") == detail(once, "acceptance")
    assert "acceptance under load" not in checks(found)


def test_healthy_draft_has_no_cause():
    with serving(3, HEALTHY) as server:
        assert mtpforge.bench(server.url, **FEW).causes == ()


@pytest.mark.slow
def test_drafting_that_loses_under_load_is_named_with_its_number(run):
    on, off = (lambda running: 0.01 * (1 + 1.5 * (running - 1))), (lambda _: 0.01)
    with serving(2, by_chance(0.8, 0.5), on) as drafting, serving(0, None, off) as without:
        ran = run(
            *("bench", drafting.url, "--baseline", without.url, "--concurrency", "1,4", "--content", "code"),
            *("--prompts", "32", "--generate", "20", "--json"),
        )
    found = ran.document["bench"]
    gains = [total["gain"]["mean"] for total in found["totals"]]
    assert gains[0] > 1 > gains[1]
    assert found["loses_from"] == 4
    verdicts = {check["name"]: check["verdict"] for check in found["checks"]}
    assert (verdicts["speed, 1 at a time"], verdicts["speed, 4 at a time"]) == ("passed", "warning")
    assert ran.code == 0
    assert [each["best"] for each in found["advice"]] == [2, 0]
    assert json.loads(found["schedule"]) == {
        "num_speculative_tokens": 2,
        "num_speculative_tokens_per_batch_size": [[1, 1, 2], [2, 4, 0]],
    }


def test_no_depth_is_advised_where_no_gain_is_proven(run):
    """Every other slice is six times as fast, the rest slower: faster by the mean, and by nothing that is known."""
    with serving(2, by_chance(0.8, 0.5)) as drafting, serving(0, None, lambda _: 0.006) as without:
        drafting.round_seconds = lambda _: 0.0023 if len(drafting.asked) // 2 % 2 else 0.017
        asked = {"baseline": without.url, "concurrency": [1], "content": ["code"], "prompts": 8, "generate": 30}
        found = mtpforge.bench(drafting.url, **asked)
    (total,), (advice,) = found.totals, found.advice
    assert total.gain.low < 1 < total.gain.mean
    assert max(each.gain for each in advice.depths) > 1
    assert (advice.best, found.schedule, found.schedule_option) == (None, "", "")
    assert checks(found)["advised depth"] == "not checked"
    assert "none at 1 at a time" in detail(found, "advised depth")


def test_both_servers_get_the_same_prompts_in_turn():
    order = []
    with serving(1, by_chance(0.8)) as drafting, serving() as without:
        drafting.on_request = lambda _: order.append("on")
        without.on_request = lambda _: order.append("off")
        found = mtpforge.bench(drafting.url, baseline=without.url, **FEW)
        sent = [[(body["messages"], body["seed"]) for body in server.asked] for server in (drafting, without)]
    assert sent[0] == sent[1]
    assert order == ["on", "off", *("on", "off", "off", "on") * 2]
    assert found.totals[0].gain.low < found.totals[0].gain.mean < found.totals[0].gain.high


def test_as_many_are_under_way_as_asked_for():
    seen, all_there = [], threading.Barrier(3, timeout=20)

    def accepts(body):
        all_there.wait()
        seen.append(server.counted.running)
        return HEALTHY(body)

    with serving(3, accepts) as server:
        mtpforge.bench(server.url, **{**FEW, "concurrency": [3], "prompts": 12})
    assert max(seen) == 3


def test_baseline_of_another_engine_is_told():
    with serving(3, HEALTHY) as on, serving(3, None) as off:
        off.counted = AsSglang(0)
        found = mtpforge.bench(on.url, baseline=off.url, **FEW)
    assert "is SGLang, the server that drafts vLLM" in detail(found, "baseline")


def test_one_name_for_two_folders_is_told():
    """Whoever serves a graft and its target under one name knows that they are one model; a mistake is seen."""
    with serving(3, HEALTHY) as on, serving(3, None) as off:
        off.models = [{"id": "tiny", "root": "/model"}]
        found = mtpforge.bench(on.url, baseline=off.url, **FEW)
        alike = mtpforge.bench(on.url, baseline=on_folder(off), **FEW)
    assert checks(found)["baseline"] == "warning"
    assert "both serve `tiny`, here from `/model`, the server that drafts from `org/tiny`" in detail(found, "baseline")
    assert "baseline" not in checks(alike)


def on_folder(server):
    server.models = [{"id": "tiny", "root": "/models/tiny"}]
    return server.url


@pytest.mark.parametrize("taken", [3, 2])
def test_acceptance_that_never_differs_is_a_remark(taken):
    """A text that repeats itself has every token accepted; so has a lot that is drawn."""
    with serving(3, lambda body: iter([taken] * 99)) as server:
        found = mtpforge.bench(server.url, **FEW | {"prompts": 8, "generate": 101})
        server.info = {"vllm_config": {"speculative_config": {"rejection_sample_method": "standard"}}}
        told = mtpforge.bench(server.url, **FEW | {"prompts": 8, "generate": 101})
    assert checks(found)["made-up acceptance"] == "warning"
    assert f"exactly {1 + taken}.000 tokens a round in each of 4 pieces" in detail(found, "made-up acceptance")
    assert (found.report.exit_code, checks(found)["acceptance"]) == (0, "passed")
    assert "made-up acceptance" not in checks(told)
    assert found.totals[0].length.high <= 4


def test_tokens_that_are_not_all_counted_are_told(monkeypatch):
    monkeypatch.setattr("mtpforge.benching.measuring._LOOKS", 2)
    with serving(3, HEALTHY) as server:
        server.counted.unseen = 0.03
        found = mtpforge.bench(server.url, **FEW)
    assert checks(found)["other users"] == "warning"
    assert "it does not count all of them" in detail(found, "other users")


def test_of_depths_beyond_the_servers_own_nothing_is_advised():
    with serving(3, HEALTHY) as server, serving(0, None) as without:
        found = mtpforge.bench(server.url, baseline=without.url, depths=[5], **FEW)
    assert (found.advice, found.schedule) == ((), "")


def test_depths_beyond_the_servers_own_are_told():
    with serving(3, HEALTHY) as server:
        found = mtpforge.bench(server.url, depths=[1, 5], **FEW)
    assert detail(found, "depths") == "5: the server says how 3 drafted tokens fare"


def test_somebody_else_on_the_server_is_told():
    with serving(3, HEALTHY) as server:
        server.on_request = lambda n: n > 1 and setattr(server.counted, "generated", server.counted.generated + 50)
        found = mtpforge.bench(server.url, **FEW)
    assert checks(found)["other users"] == "warning"


def test_text_of_ones_own_is_asked(tmp_path):
    text = tmp_path / "own.txt"
    text.write_text("alpha\fbeta\f" + "gamma " * 300)
    with serving(3, HEALTHY) as server:
        found = mtpforge.bench(server.url, text=text, **{**FEW, "content": [], "endpoint": "completions"})
        asked = [body["prompt"] for body in server.asked]
    assert found.cells[0].content == "text"
    assert asked[1] == "Continue this text.\n\nalpha"
    assert "Continue this text.\n\nbeta" in asked


@pytest.mark.parametrize("text", ["", " \n\f "])
def test_text_without_words_is_refused(run, tmp_path, text):
    (tmp_path / "empty.txt").write_text(text)
    ran = run("bench", "http://127.0.0.1:1", "--text", tmp_path / "empty.txt")
    assert (ran.code, ran.out) == (3, "")


def test_interrupt_tells_what_was_measured(run):
    """As by Ctrl-C: the second cell is stopped, the first one stands above."""

    def interrupt(n):
        if n == 12:
            os.kill(os.getpid(), signal.SIGINT)

    with serving(3, HEALTHY, lambda _: 0.002) as server:
        server.on_request = interrupt
        words = ("--concurrency", "1", "--content", "chat,code", "--prompts", "8", "--generate", "24")
        ran = run("bench", server.url, *words)
        server.asked.clear()
        as_json = run("bench", server.url, *words, "--json")
    assert ran.code == as_json.code == 130
    assert "chat, 1 at a time" in ran.out
    assert "lines above hold what was measured until then" in ran.err
    (whole,) = as_json.document["measured"]
    assert (whole["content"], whole["n_prompts"]) == ("chat", 8)
    assert "`measured` holds what was measured until then" in as_json.err


@pytest.mark.parametrize("more", [(), ("--json",), ("-q",)])
def test_interrupt_of_the_first_cell_points_at_nothing(run, more):
    with serving(3, HEALTHY, lambda _: 0.002) as server:
        server.on_request = lambda n: n == 3 and os.kill(os.getpid(), signal.SIGINT)
        ran = run("bench", server.url, *WORDS, *more)
    assert ran.code == 130
    assert "nothing was measured to its end, so nothing is judged" in ran.err
    assert "above" not in ran.err
    assert "`measured`" not in ran.err
