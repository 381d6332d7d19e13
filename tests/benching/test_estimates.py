"""Intervals hold the truth as often as they say; depths give back the costs that made the numbers."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest

from mtpforge.benching import depths, estimates, verdicts
from mtpforge.benching.estimates import Interval, Pair
from mtpforge.benching.found import Bench, Cell

TRIALS = 600


def covered(intervals: list[Interval], truth: float) -> float:
    return sum(each.low <= truth <= each.high for each in intervals) / len(intervals)


def test_length_is_the_ratio_of_sums_and_its_interval_holds_the_truth():
    assert estimates.length([3, 5], [2, 2]).mean == 3.0  # 1 + 8 / 4
    chance, found = random.Random(1), []
    for _ in range(TRIALS):
        rounds = [chance.randint(80, 120) for _ in range(4)]
        found.append(estimates.length([sum(chance.random() < 0.6 for _ in range(n)) for n in rounds], rounds))
    assert 0.92 < covered(found, 1.6) < 0.98


def test_gain_is_paired_and_its_interval_holds_the_truth():
    pairs = [Pair(100, 2, 100, 4), Pair(50, 1, 60, 2)]
    assert estimates.gain(pairs).mean == pytest.approx((150 / 3) / (160 / 6))
    chance, found = random.Random(2), []
    for _ in range(TRIALS):
        some = []
        for _ in range(12):
            hardness, tokens = chance.uniform(0.5, 2), chance.randint(40, 60)
            some.append(Pair(tokens, hardness * tokens * chance.uniform(0.9, 1.1), tokens, 1.5 * hardness * tokens))
        found.append(estimates.gain(some))
    assert 0.92 < covered(found, 1.5) < 0.98
    # unpaired, prompts that differ fourfold would hide a gain of a third
    assert all(each.high / each.low < 1.25 for each in found)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_classes_that_differ_are_no_error_of_the_whole(n):
    """Each has its own rate and scatter; the whole is what all of their text comes to."""
    rates, scatter = {"a": 1.2, "b": 1.6, "c": 2.2, "d": 2.6}, {"a": 0.01, "b": 0.05, "c": 0.02, "d": 0.1}
    tokens, chance = 10_000, random.Random(4)
    truth = 4 / sum(1 / (1 + rate) for rate in rates.values())  # tokens of each class are the same, rounds are not
    found, gains, widths = [], [], []
    for _ in range(TRIALS):
        units = [(name, rate * (1 + chance.gauss(0, scatter[name]))) for name, rate in rates.items() for _ in range(n)]
        rounds = [tokens / (1 + rate) for _, rate in units]
        classes = [name for name, _ in units]
        accepted = [tokens - each for each in rounds]
        found.append(estimates.length(accepted, rounds, 0, classes))
        pairs = [Pair(tokens, each, tokens, tokens) for each in rounds]
        gains.append(estimates.gain(pairs, classes))
        alone = estimates.length(accepted, rounds)
        widths.append((found[-1].high - found[-1].low) / (alone.high - alone.low))
    for some in (found, gains):
        assert 0.92 < covered(some, truth) < 0.995
    assert statistics.median(widths) < (1 if n == 2 else 0.5)


def test_classes_in_any_order_and_a_single_one_make_no_difference():
    accepted, rounds, classes = [9, 5, 8, 4.5, 9.5], [4, 5, 4, 5, 4], ["a", "b", "a", "b", "a"]
    order = [1, 4, 0, 3, 2]
    one = estimates.length(accepted, rounds, 0, classes)
    other = estimates.length(
        *([column[at] for at in order] for column in (accepted, rounds)), 0, [classes[at] for at in order]
    )
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    assert estimates.length(accepted, rounds, 0, ["a"] * 5) == estimates.length(accepted, rounds)
    assert estimates.length([9, 5, 8], [4, 5, 4], 0, ["a", "b", "a"]).low is None  # b's scatter is not known


def test_length_ends_where_every_token_is_accepted():
    some = [9, 9, 6], [3, 3, 3]
    assert estimates.length(*some).high > 4
    assert estimates.length(*some, 3).high == 4
    assert estimates.length(*some, 3).mean == estimates.length(*some).mean


def test_one_unit_has_no_interval():
    assert estimates.length([3], [2]) == Interval(2.5, None, None)
    assert estimates.gain([Pair(10, 1, 10, 2)]) == Interval(2.0, None, None)
    assert str(Interval(2.5, None, None)) == "2.50"


@pytest.mark.slow
def test_quantiles_are_those_of_the_t_distribution():
    t = pytest.importorskip("scipy.stats").t
    for freedom in (*range(1, 31), 40, 100, 1000):
        assert estimates.t_975(freedom) == pytest.approx(t.ppf(0.975, freedom), abs=3e-3)


def gain_of(k: int, positions: list[float], cost: float) -> float:
    """What a server gives whose drafted tokens cost this share of a round each."""
    return (1 + sum(positions[:k])) / (1 + k * cost)


def test_advice_gives_back_the_cost_and_the_fastest_depth():
    positions, cost = [0.84, 0.66, 0.49, 0.34, 0.28], 0.25
    found = depths.advised(4, positions, gain_of(5, positions, cost), (1, 2, 3, 5), pays=True)
    assert found.draft_cost == pytest.approx(cost)
    assert [each.k for each in found.depths] == [1, 2, 3, 5]
    assert [each.gain for each in found.depths] == pytest.approx([gain_of(k, positions, cost) for k in (1, 2, 3, 5)])
    assert found.best == 3
    assert [each.measured for each in found.depths] == [False, False, False, True]


def test_depth_is_none_where_all_lose():
    found = depths.advised(16, [0.5, 0.2], gain_of(2, [0.5, 0.2], 0.9), (), pays=False)
    assert [each.k for each in found.depths] == [1, 2]
    assert found.best == 0


def test_no_other_depth_is_advised_where_the_measured_one_does_not_pay():
    positions = [0.84, 0.1, 0.05]
    some = (4, positions, gain_of(3, positions, 0.4), ())
    assert depths.advised(*some, pays=True).best == 1
    assert depths.advised(*some, pays=False).best == 0
    assert depths.advised(*some, pays=None).best is None
    assert depths.advised(*some, pays=None).depths[0].gain > 1  # it is shown all the same


def test_depths_that_decode_no_faster_are_no_advice_against_one_that_pays():
    assert depths.advised(4, [0.5], 0.98, (), pays=True).best is None


@pytest.mark.parametrize("unknown", [1, 4, 16])
def test_schedule_and_advice_leave_out_what_is_not_proven(unknown):
    found = [depths.Advice(n, 0.0, (), None if n == unknown else 3) for n in (1, 4, 16)]
    assert depths.schedule(found) == ()
    (told,) = verdicts.of_advice(found, is_scheduled=True)
    assert (told.verdict, told.detail.partition(":")[0]) == ("not checked", f"none at {unknown} at a time")
    (other,) = verdicts.of_advice(found, is_scheduled=False)
    assert told.detail.startswith(f"{other.detail}; nor one by batch size")
    assert not list(verdicts.of_advice([each for each in found if each.best is not None], is_scheduled=True))


@pytest.mark.parametrize(("gain", "is_possible"), [(2.2, True), (2.3, True), (2.4, False), (9.0, False)])
def test_no_draft_is_faster_than_its_tokens_a_round(gain, is_possible):
    positions = (0.7, 0.5)  # 2.2 tokens a round, and 2.31 with what noise may add
    total = Cell("", 4, 8, 200, Interval(2.2, 2, 2.4), positions, 1, 1, 1, 1, Interval(gain, 2, 9), gain)
    assert depths.is_possible(total) is is_possible
    (told,) = verdicts.of_speed([total])
    assert told.verdict == ("passed" if is_possible else "warning")
    assert ("no draft gives that" in told.detail) is not is_possible
    found = Bench("", None, "", "", "", "", 1, 1, 2, (), (total,), (), "", "", None, None, (told,), ())
    assert found.report.summary == ("drafting pays at a concurrency of 4" if is_possible else "")
    if is_possible:
        assert depths.is_possible(replace(total, decode_gain=None, gain=None))
        found = depths.advised(4, positions, gain, (), pays=True)
        assert found.draft_cost >= 0
        assert found.depths[-1].gain == gain


def test_schedule_joins_ranges_of_one_depth_and_begins_at_one():
    def advice(concurrency: int, best: int) -> depths.Advice:
        return depths.Advice(concurrency, 0.0, (), best)

    found = [advice(16, 1), advice(1, 3), advice(4, 3), advice(32, 0)]
    assert depths.schedule(found) == ((1, 4, 3), (5, 16, 1), (17, 32, 0))
