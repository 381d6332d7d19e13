"""Metrics pages as the engines' own definitions write them, and what was counted between two of them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from mtpforge.benching import counting
from mtpforge.engines import ENGINES
from mtpforge.engines.vllm import VLLM
from mtpforge.errors import MtpforgeError

METRICS = Path(__file__).parents[1] / "data" / "metrics"
PAGES = {"vllm": "vllm-0.33.0.txt", "sglang": "sglang-0.5.23.txt"}
EMPTY = counting.Page({}, (), {})


def stored(engine: str) -> str:
    return (METRICS / PAGES[engine]).read_text()


def counted(engine: str, before: str = "") -> counting.Counts:
    counters = ENGINES[engine].counters
    first = counting.page(before, counters, "it") if before else EMPTY
    return counting.between(first, counting.page(stored(engine), counters, "it"), counters, "it")


def test_page_of_vllm_gives_what_it_was_handed():
    """make.py: three rounds of three drafted tokens, of which 3, 1 and 0 are accepted."""
    assert counted("vllm") == counting.Counts(3, 4, 9, (2, 1, 1), 7)
    assert counted("vllm").length == pytest.approx(1 + 4 / 3)


def test_page_of_sglang_tells_accepted_tokens_by_what_was_generated():
    """make.py: a reply of 4 tokens in one round after its prompt's step, one of 3 in two: 2, 0 and 0 accepted."""
    assert counted("sglang") == counting.Counts(3, 2, 0, (), 7)


def test_depth_is_that_of_a_rank_and_no_sum():
    counters = ENGINES["sglang"].counters
    ranks = stored("sglang") + re.sub('moe_ep_rank="0"', 'moe_ep_rank="1"', stored("sglang"))
    assert counting.page(ranks, counters, "it").steps == 3  # make.py: K
    assert counting.page(stored("vllm"), VLLM.counters, "it").steps == 0


@pytest.mark.parametrize(
    ("some", "is_possible"),
    [
        (counting.Counts(3, 4, 9, (2, 1, 1)), True),
        (counting.Counts(3, 4, 0, ()), True),
        (counting.Counts(3, 10, 9, (3, 3, 3)), False),
        (counting.Counts(3, 4, 9, (4, 0, 0)), False),
        (counting.Counts(3, 4, 9, (1, 2, 1)), False),
    ],
)
def test_counters_agree_with_each_other(some, is_possible):
    assert some.is_possible is is_possible


def test_position_that_fell_is_a_restart():
    less = re.sub(r'(position="1"\}) \S+', r"\1 9.0", stored("vllm"))
    with pytest.raises(MtpforgeError, match="started anew") as refused:
        counted("vllm", less)
    assert refused.value.why == "`vllm:spec_decode_num_accepted_tokens_per_pos_total` fell"


@pytest.mark.parametrize("value", ["NaN", "+Inf"])
def test_counter_that_is_no_number_is_refused_by_name(value):
    name = VLLM.counters.rounds
    spoiled = re.sub(rf"^({name}\{{.*\}}) \S+$", rf"\1 {value}", stored("vllm"), flags=re.MULTILINE)
    assert spoiled != stored("vllm")
    with pytest.raises(MtpforgeError, match="count no rounds or tokens") as refused:
        counting.page(spoiled, VLLM.counters, "it")
    assert f"`{name}` is " in refused.value.why


@pytest.mark.parametrize("engine", PAGES)
def test_page_names_its_engine(engine):
    assert counting.engine_of_page(stored(engine), "it") is ENGINES[engine]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("engine", "variable"), [("vllm", "MTPFORGE_TEST_ENGINE_PYTHON"), ("sglang", "MTPFORGE_TEST_SGLANG_PYTHON")]
)
def test_stored_page_is_what_the_installed_engine_writes(engine, variable):
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no interpreter")
    environment = os.environ | {"PYTHONPATH": str(METRICS.parents[2])}
    words = [python, str(METRICS / "make.py"), engine]
    made = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert made.returncode == 0, made.stderr
    assert made.stdout == stored(engine)


def test_page_of_another_server_is_refused():
    with pytest.raises(MtpforgeError) as refused:
        counting.engine_of_page("nginx_connections_active 3\n", "http://it")
    assert str(refused.value) == (
        "error: the metrics of http://it are of no engine that is known here\n"
        "cause: known: vLLM, SGLang\n"
        " hint: a gateway has metrics of its own: name the engine's address; `curl http://it/metrics`"
    )


def test_ranks_are_summed():
    twice = stored("vllm") + re.sub('engine="0"', 'engine="1"', stored("vllm"))
    counters = VLLM.counters
    found = counting.between(EMPTY, counting.page(twice, counters, "it"), counters, "it")
    assert found == counting.Counts(6, 8, 18, (4, 2, 2), 14)


def test_counters_that_fell_are_a_restart():
    higher = stored("vllm").replace("} 7.0", "} 8.0")
    assert higher != stored("vllm")
    with pytest.raises(MtpforgeError, match="started anew") as refused:
        counted("vllm", higher)
    assert (refused.value.why, refused.value.code) == ("`vllm:generation_tokens_total` fell", 4)


def test_counters_that_began_anew_are_a_restart_even_where_they_are_higher():
    lower = re.sub(r"(\} )[1-9]\.0", r"\g<1>0.0", stored("vllm"))
    earlier = lower.replace("1.7e+09", "1.6e+09")
    assert counted("vllm", lower).rounds == 3
    with pytest.raises(MtpforgeError, match="started anew"):
        counted("vllm", earlier)


def test_broken_page_is_refused():
    with pytest.raises(MtpforgeError, match="cannot be read"):
        counting.page("vllm:spec_decode_num_drafts_total{ 1", VLLM.counters, "it")


def test_histograms_of_replies_are_counted_by_position():
    """Rounds that accepted 0, 1, 2, 3 tokens: 5, 0, 2, 1 of one reply, 1 and 1 of another."""
    found = counting.of_histograms([(5, 0, 2, 1), (1, 1)], 20)
    assert found == counting.Counts(10, 8, 0, (4, 3, 1), 20)


def test_sum_of_stretches_keeps_positions_apart():
    found = counting.summed([counting.Counts(2, 3, 6, (2, 1), 5), counting.Counts(1, 1, 3, (1,), 2)])
    assert found == counting.Counts(3, 4, 9, (3, 1), 7)
