"""A server with SGLang's metrics: rounds alone are counted; each reply says how it was drafted, if it is asked to."""

from __future__ import annotations

import pytest
from openai_server import AsSglang, by_chance, serving

import mtpforge
from mtpforge.benching.estimates import Interval
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError

FEW = {"concurrency": [1], "content": ["chat"], "prompts": 8, "generate": 24}


def histogram(body, given):
    """SglExt of srt/entrypoints/openai/protocol.py (0.5.23). The first event is the prompt's own step."""
    if not body.get("return_spec_tokens_details"):
        return None
    taken = [n - 1 for n in given[1:]]
    counted = [taken.count(n) for n in range(max(taken) + 1)]
    return {"choices": [], "sglext": {"spec_tokens_details": {"spec_correct_drafts_histogram": counted}}}


def detail(found, name: str) -> str:
    return next(check.detail for check in found.checks if check.name == name)


@pytest.fixture
def server():
    with serving(3, by_chance(0.84, 0.66, 0.49)) as one:
        one.counted = AsSglang(3)
        one.given = []
        yield one


def test_positions_come_from_the_replies(server):
    def adds(body, given):
        if body["seed"] < 100:
            server.given.append([n - 1 for n in given[1:]])
        return histogram(body, given)

    server.adds = adds
    found = mtpforge.bench(server.url, **FEW)
    rounds = [n for each in server.given for n in each]
    (total,) = found.totals
    assert (found.engine, found.k, total.n_rounds) == ("SGLang", 3, len(rounds))
    assert total.positions == pytest.approx([sum(n >= at for n in rounds) / len(rounds) for at in (1, 2, 3)])
    assert total.length.mean == pytest.approx(1 + sum(rounds) / len(rounds))
    assert total.length.low < total.length.mean < total.length.high


@pytest.mark.parametrize(("told", "gauge"), [(5, None), (None, 5), (5, 3)])
def test_depth_is_what_the_server_says(server, told, gauge):
    """A histogram ends with the most that was accepted: 3 of 5 here."""
    server.adds = histogram
    server.info = None if told is None else {"speculative_num_steps": told, "launch_command": "python -m sglang"}
    if gauge:
        ranks = "".join(f'sglang:spec_num_steps{{dp_rank="{rank}"}} {gauge}.0\n' for rank in (0, 1))
        server.counted.more = ranks
    found = mtpforge.bench(server.url, **FEW)
    (total,) = found.totals
    assert (found.k, len(total.positions), total.positions[3:]) == (5, 5, (0.0, 0.0))
    assert found.cells[0].positions == total.positions
    assert total.length.mean == pytest.approx(1 + sum(total.positions))
    assert detail(found, "made-up acceptance").startswith("cannot be seen")


def test_nothing_accepted_is_nothing_at_each_position(server):
    server.accepts, server.adds = by_chance(0.0, 0.0, 0.0), histogram
    server.info = {"speculative_num_steps": 3}
    found = mtpforge.bench(server.url, **FEW)
    assert found.totals[0].positions == (0.0, 0.0, 0.0)
    assert found.report.exit_code == 1


@pytest.mark.parametrize("value", ["x", -1, 10**9, True, [3]])
def test_depth_that_is_none_is_not_taken(value):
    assert ENGINES["sglang"].counters.depth({"speculative_num_steps": value}) == 0
    told = {"vllm_config": {"speculative_config": {"num_speculative_tokens": value}}}
    assert ENGINES["vllm"].counters.depth(told) == 0
    assert ENGINES["vllm"].counters.depth({"vllm_config": {"speculative_config": {"num_speculative_tokens": 7}}}) == 7


def test_without_them_length_comes_from_what_was_generated(server):
    server.adds = lambda body, given: body["seed"] < 100 and server.given.append([n - 1 for n in given[1:]])
    found = mtpforge.bench(server.url, **FEW)
    rounds = [n for each in server.given for n in each]
    (total,) = found.totals
    assert (found.k, total.positions, total.n_rounds) == (0, (), len(rounds))
    assert total.length.mean == pytest.approx(1 + sum(rounds) / len(rounds))
    assert isinstance(total.length, Interval)
    assert found.schedule == ""


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        ({"launch_command": "python -m sglang.launch_server --model x"}, None),
        (
            {"launch_command": "SGLANG_SIMULATE_ACC_LEN=3 python -m sglang"},
            "`SGLANG_SIMULATE_ACC_LEN` is set",
        ),
        ({}, None),
    ],
)
def test_what_its_command_says_of_made_up_acceptance(info, wanted):
    assert ENGINES["sglang"].counters.made_up(info) == wanted


@pytest.mark.parametrize(
    ("drafting", "wanted"),
    [
        ({"rejection_sample_method": "standard", "synthetic_acceptance_length": None}, ""),
        ({"rejection_sample_method": "synthetic"}, "`rejection_sample_method` is `synthetic`"),
        ({"synthetic_acceptance_rates": [0.9]}, "`synthetic_acceptance_rates` is set"),
        (None, None),
    ],
)
def test_what_vllm_says_of_made_up_acceptance(drafting, wanted):
    assert ENGINES["vllm"].counters.made_up({"vllm_config": {"speculative_config": drafting}}) == wanted


def test_metrics_that_are_off_are_refused_with_the_flag(server):
    server.has_metrics = False
    with pytest.raises(MtpforgeError) as refused:
        mtpforge.bench(server.url, **FEW)
    assert "started with `--enable-metrics`" in refused.value.fix
