"""Numbers of a cell from replies that are typed out, and what speeds come to."""

from __future__ import annotations

import json
import os
import random
import subprocess

import pytest

from mtpforge.benching import cells, slices, verdicts
from mtpforge.benching.counting import Counts
from mtpforge.benching.estimates import Interval
from mtpforge.benching.found import Bench, Cell
from mtpforge.benching.measuring import Measured, Taken
from mtpforge.benching.streaming import Reply
from mtpforge.engines.vllm import VLLM

NONE = Counts()


def taken(*replies: tuple[int, float, float], counts: Counts = NONE) -> Taken:
    return Taken(tuple(Reply(*reply) for reply in replies), counts)


SLICES = [
    Measured(
        slices.Slice("code", 2, 0, 0, 2, 3),
        taken((11, 2.0, 1.0), (21, 3.0, 1.0), counts=Counts(10, 16, 30, (9, 5, 2), 32)),
        taken((11, 3.0, 1.0), (21, 6.0, 1.0)),
    ),
    Measured(
        slices.Slice("code", 2, 1, 2, 3, 3),
        taken((8, 1.0, 0.3), counts=Counts(5, 5, 15, (3, 1, 1), 8)),
        taken((8, 1.0, 0.3)),
    ),
]


def test_prompts_of_a_slice_are_one_unit_of_the_gain():
    """What slows a slice slows all of its prompts: copies of them make no interval narrower."""

    def both(number, n, seconds):
        return Measured(
            slices.Slice("code", 2, number, 0, n, n), taken(*[(10, seconds, 0.1)] * n), taken(*[(10, 2.0, 0.1)] * n)
        )

    few, many = ([both(0, n, 1.0), both(1, n, 1.2), both(2, n, 0.9)] for n in (1, 50))
    one, other = (cells.cell("code", 2, found).gain for found in (few, many))
    assert (other.low, other.high) == pytest.approx((one.low, one.high))
    assert one.high / one.low > 1.5


def test_cell_is_what_its_slices_come_to():
    found = cells.cell("code", 2, SLICES)
    assert (found.n_prompts, found.n_rounds) == (3, 15)
    assert found.positions == pytest.approx((12 / 15, 6 / 15, 3 / 15))
    assert found.conditional == pytest.approx((0.8, 0.5, 0.5))
    assert found.length.mean == pytest.approx(1 + 21 / 15)
    assert (found.first, found.first_without) == (1.0, 1.0)
    # two under way until one has ended: 11 tokens and half of 20 and 1, then 8; 2 and 2 seconds of requests, then 1
    assert found.speed == pytest.approx(2 * (11 + 11 + 8) / (2 + 2 + 1))
    # without: 3 seconds, in which the second reply gave 1 and 20 * 2 / 5
    assert found.speed_without == pytest.approx(2 * (11 + 9 + 8) / (3 + 3 + 1))
    assert found.gain.mean == pytest.approx((30 / 5) / (28 / 7))
    assert found.decode_gain == pytest.approx((27 / 2.7) / (25 / 4.7))


def plain(replies: list[Reply], n: int, step: float = 1e-3) -> tuple[float, float]:
    """Tokens and seconds of requests, moment by moment, for as long as n are under way."""
    tokens = seconds = 0.0
    at = min(reply.began for reply in replies) + step / 2
    last = max(reply.began for reply in replies)
    while True:
        under_way = [reply for reply in replies if reply.began <= at < reply.began + reply.seconds]
        if len(under_way) < n and at > last:
            return tokens, seconds
        seconds += step * len(under_way)
        for reply in under_way:
            since = at - reply.began
            if since >= reply.first:
                tokens += step * (reply.tokens - 1) / (reply.seconds - reply.first)
            tokens += since - step < reply.first <= since
        at += step


def closed_loop(chance: random.Random, n: int, prompts: int) -> list[Reply]:
    """The next prompt begins where one of n has ended."""
    free, found = [0.0] * n, []
    for _ in range(prompts):
        began = min(free)
        first = chance.uniform(0.05, 0.2)
        seconds = first + chance.uniform(0.1, 1)
        found.append(Reply(chance.randint(5, 50), seconds, first, began=began))
        free[free.index(began)] = began + seconds
    return found


@pytest.mark.parametrize(("n", "prompts"), [(1, 3), (2, 4), (4, 8), (4, 19), (3, 3)])
def test_speed_is_that_of_so_many_under_way(n, prompts):
    replies = closed_loop(random.Random(prompts), n, prompts)
    found = cells.busy(replies)
    assert (found.tokens, found.seconds) == pytest.approx(plain(replies, n), rel=0.02)


def shared(lengths: list[int], n: int, speed: float, step: float = 1e-3) -> list[Reply]:
    """Of a server whose tokens a second are the same for any number of requests: n at a time share them."""
    waiting, began, given, times, at = list(range(len(lengths))), {}, {}, [[] for _ in lengths], 0.0
    while waiting or given:
        while waiting and len(given) < n:
            began[waiting[0]], given[waiting.pop(0)] = at, 0.0
        at += step
        each = speed * step / len(given)
        for one in list(given):
            given[one] += each
            if given[one] >= len(times[one]) + 1:
                times[one].append(at - began[one])
            if len(times[one]) == lengths[one]:
                del given[one]
    return [
        Reply(length, own[-1], own[0], began=began[one], later=tuple(own[1:]))
        for one, (length, own) in enumerate(zip(lengths, times, strict=True))
    ]


def test_end_of_a_slice_makes_no_server_faster():
    """What is left alone at the end of a slice runs four times as fast, and is no sign of speed at four at a time."""
    chance, some = random.Random(5), []
    for number in range(4):
        replies = shared([chance.randint(5, 100) for _ in range(8)], 4, 100.0)
        some.append(Measured(slices.Slice("code", 4, number, 0, 8, 8), Taken(tuple(replies), NONE), None))
    replies = [reply for each in some for reply in each.drafting.replies]
    by_all_seconds = 4 * sum(reply.tokens for reply in replies) / sum(reply.seconds for reply in replies)
    assert by_all_seconds > 108
    assert cells.cell("code", 4, some).speed == pytest.approx(100, rel=0.02)


def test_replies_that_come_whole_tell_nothing_of_decoding():
    """Of a proxy that gathers them, or a server that streams every so many tokens: first and last event are one."""
    whole = taken((11, 2.0, 2.0), (21, 3.0, 3.0))
    on = [Measured(each.slice, whole, each.without) for each in SLICES]
    off = [Measured(each.slice, each.drafting, whole) for each in SLICES]
    for some in (on, off):
        found = cells.cell("code", 2, some)
        assert found.decode_gain is None
        assert found.gain is not None


def test_interval_ends_where_every_step_is_accepted():
    """The server tells its three steps and no position: no round has more than four tokens all the same."""
    counts = [Counts(10, accepted, 0, (), 10 + accepted) for accepted in (30, 16, 29, 30)]
    found = [
        Measured(slices.Slice("code", 1, at, at, at + 1, 4), taken((9, 2.0, 1.0), counts=each), None)
        for at, each in enumerate(counts)
    ]
    told, untold = cells.cell("code", 1, found, steps=3), cells.cell("code", 1, found)
    assert told.positions == ()
    assert (told.length.mean, told.length.high) == (untold.length.mean, 4)
    assert untold.length.high > 4


LENGTHS = {"agentic": 2.2, "chat": 2.6, "code": 3.2, "prose": 3.6}


@pytest.mark.parametrize(("share", "is_told"), [(0.82, True), (0.9, True), (1.0, False)])
def test_fall_under_load_is_told_whatever_classes_have_apart(share, is_told):
    """Four classes that differ by more than they fall, each of four slices that hardly differ."""
    chance = random.Random(7)

    def whole(concurrency: int, share: float) -> Cell:
        found = []
        for content, length in LENGTHS.items():
            for at in range(4):
                accepted = 1000 * (length * share * (1 + chance.gauss(0, 0.01)) - 1)
                counts = Counts(1000, accepted, 3000, (), 1000 + accepted)
                found.append(
                    Measured(
                        slices.Slice(content, concurrency, at, at, at + 1, 4), taken((9, 2.0, 1.0), counts=counts), None
                    )
                )
        return cells.cell("", concurrency, found)

    one, other = whole(1, 1.0), whole(16, share)
    assert (one.length.mean, other.length.mean) == pytest.approx((2.9, 2.9 * share), rel=0.01)
    assert [check.name for check in verdicts.of_load([other, one])] == ["acceptance under load"] * is_told


def test_without_a_baseline_nothing_is_compared():
    found = cells.cell("code", 2, [Measured(each.slice, each.drafting, None) for each in SLICES])
    assert (found.gain, found.decode_gain, found.speed_without) == (None, None, None)


@pytest.mark.parametrize(
    ("concurrency", "n", "edges"),
    [
        (1, 8, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        (16, 128, [(0, 32), (32, 64), (64, 96), (96, 128)]),
        (16, 80, [(0, 40), (40, 80)]),  # of slices of twenty, most of the time would have fewer under way
        (1, 2, [(0, 1), (1, 2)]),
    ],
)
def test_slices_hold_twice_as_many_prompts_as_requests_at_a_time(concurrency, n, edges):
    assert [(each.first, each.last) for each in slices.cut("code", concurrency, n, 4)] == edges


def total(concurrency: int, low: float, high: float) -> Cell:
    gain = Interval((low + high) / 2, low, high)
    return Cell("", concurrency, 8, 99, Interval(3.0, 2.9, 3.1), (0.9, 0.6, 0.5), 1.0, 1.0, 1.0, 1.0, gain, 1.0)


FASTER, EQUAL, SLOWER = (1.2, 1.8), (0.9, 1.1), (0.6, 0.8)


@pytest.mark.parametrize(
    ("gains", "said", "loses_from", "summary"),
    [
        ([FASTER, FASTER], ["passed", "passed"], None, "drafting pays at a concurrency of 1, 4"),
        (
            [FASTER, SLOWER],
            ["passed", "warning"],
            4,
            "drafting pays at a concurrency of 1 and loses at 4",
        ),
        ([SLOWER, SLOWER], ["failed", "failed"], 1, "drafting loses at a concurrency of 1, 4"),
        ([EQUAL, SLOWER], ["failed", "failed"], 4, "drafting loses at a concurrency of 4"),
        ([EQUAL, EQUAL], ["warning", "warning"], None, "no gain is proven"),
        ([FASTER, EQUAL], ["passed", "warning"], None, "drafting pays at a concurrency of 1"),
    ],
)
def test_drafting_that_pays_nowhere_fails(gains, said, loses_from, summary):
    totals = tuple(total(n, *gain) for n, gain in zip((1, 4), gains, strict=True))
    checks = tuple(verdicts.of_speed(totals))
    assert [check.verdict for check in checks] == said
    assert verdicts.loses_from(totals) == loses_from
    found = Bench("", None, "", "", "", "", 1, 1, 3, (), totals, (), "", "", None, loses_from, checks, ())
    assert found.report.summary == summary
    assert found.report.exit_code == ("failed" in said)
    assert found.document() == {"bench": found, "report": found.report}


def test_no_depth_at_all_is_no_schedule():
    assert VLLM.counters.schedule([(1, 4, 0), (5, 16, 0)]) == ""


@pytest.mark.engine
def test_schedule_is_one_that_vllm_takes():
    python = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
    if not python:
        pytest.skip("MTPFORGE_TEST_ENGINE_PYTHON names no interpreter")
    keys = json.loads(VLLM.counters.schedule([(1, 4, 3), (5, 16, 1), (17, 32, 0)]))
    code = (
        "import sys, json\n"
        "from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup as build\n"
        "keys = json.loads(sys.argv[1])\n"
        "print(build(keys['num_speculative_tokens_per_batch_size'], 32, keys['num_speculative_tokens']))"
    )
    ran = subprocess.run([python, "-c", code, json.dumps(keys)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [0, *[3] * 4, *[1] * 12, *[0] * 16]
