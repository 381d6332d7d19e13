"""Who stays, given scores: plain cases by hand, and laws over any scores."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpforge.errors import MtpforgeError
from mtpforge.families.routing import Routing, routing
from mtpforge.pruning.ranking import agreement, keep

FREE = Routing(top_k=2)
GROUPED = Routing(top_k=4, n_group=4, topk_group=2)


def test_highest_or_lowest_go_first_and_what_stays_is_ascending():
    scores = [3.0, 1.0, 2.0, 5.0, 4.0]
    assert keep(scores, 3, FREE, "highest") == (0, 1, 2)
    assert keep(scores, 3, FREE, "lowest") == (0, 3, 4)


def test_of_equal_scores_the_higher_number_goes():
    assert keep([0.0, 1.0, 1.0, 1.0], 3, FREE, "highest") == (0, 1, 2)
    assert keep([1.0, 1.0, 1.0, 2.0], 3, FREE, "lowest") == (0, 1, 3)


def test_every_group_gives_as_many():
    scores = [9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0, 0.1, 0.2, 0.3, 0.4, 5.0, 5.1, 5.2, 5.3]
    assert keep(scores, 8, GROUPED, "highest") == (2, 3, 4, 5, 8, 9, 12, 13)
    assert keep(scores, 8, FREE, "highest") == (4, 5, 6, 7, 8, 9, 10, 11)


@given(
    st.lists(st.floats(-10, 10), min_size=16, max_size=16),
    st.sampled_from([8, 12, 16]),
    st.sampled_from(["highest", "lowest"]),
)
def test_kept_are_so_many_ascending_equal_by_group_and_no_worse_than_what_goes(scores, n_kept, drops):
    kept = keep(scores, n_kept, GROUPED, drops)
    assert kept == tuple(sorted(set(kept)))
    assert len(kept) == n_kept
    sign = 1 if drops == "highest" else -1
    for group in range(4):
        members = range(4 * group, 4 * group + 4)
        stays = [sign * scores[n] for n in members if n in kept]
        goes = [sign * scores[n] for n in members if n not in kept]
        assert len(stays) == n_kept // 4
        assert not goes or max(stays) <= min(goes)
    assert keep(scores, n_kept, GROUPED, drops) == kept


@pytest.mark.parametrize(
    ("route", "n_kept", "what", "fix"),
    [
        (Routing(4), 3, "3 experts are fewer than the 4 that every token is sent to", "`--experts 4`"),
        (GROUPED, 10, "10 experts cannot be shared equally by 4 groups", "`--experts 8`"),
        (GROUPED, 4, "4 experts in 4 groups cannot fill the choice of 4 for every token", "`--experts 8`"),
        (Routing(8, 8, 4), 8, "8 experts in 8 groups cannot fill the choice of 8", "`--experts 16`"),
        (Routing(8, 4, 2), 12, "12 experts in 4 groups cannot fill the choice of 8", "`--experts 16`"),
        (Routing(5, 4, 2), 8, "8 experts in 4 groups cannot fill the choice of 5", "`--experts 12`"),  # 2.5 of a group
        (Routing(4, 4, 4), 4, "4 experts in 4 groups cannot fill the choice of 4", "`--experts 8`"),  # two make a worth
        (Routing(4, 8, 4), 5, "5 experts cannot be shared equally by 8 groups", "`--experts 16`"),  # not 0
    ],
)
def test_count_that_cannot_serve_the_routing_is_refused_with_one_that_can(route, n_kept, what, fix):
    with pytest.raises(MtpforgeError) as caught:
        keep([0.0] * 16, n_kept, route, "highest")
    assert what in caught.value.what
    assert fix in caught.value.fix
    route.refuse_count(int(fix.strip("`").split()[1]))


@pytest.mark.parametrize(
    ("kept", "what"),
    [
        ((0, 1, 2, 16), "the source has no expert 16"),
        ((-1, 1, 2, 3), "the source has no expert -1"),
        ((1, 0, 2, 3), "the experts to keep are not in ascending order, each once"),
        ((0, 0, 2, 3), "the experts to keep are not in ascending order, each once"),
        ((0, 1, 2), "3 experts are fewer than the 4"),
        ((0, 1, 2, 4, 5, 6, 8, 12), "of the 4 groups of experts 3, 3, 1, 1 stay"),
    ],
)
def test_list_that_is_no_choice_is_refused(kept, what):
    with pytest.raises(MtpforgeError) as caught:
        GROUPED.refuse_list(kept, 16)
    assert what in caught.value.what


def test_list_with_as_many_of_every_group_is_taken():
    GROUPED.refuse_list((0, 1, 4, 5, 8, 9, 12, 13), 16)
    Routing(4).refuse_list((0, 1, 2, 3), 16)


def test_score_that_is_no_number_is_refused():
    with pytest.raises(MtpforgeError, match="expert 1 has no score"):
        keep([0.0, math.nan, 1.0], 2, FREE, "highest")


def test_routing_is_the_first_config_that_states_it():
    first, second = {"num_experts_per_tok": 4, "n_group": None}, {"num_experts_per_tok": 8, "n_group": 2}
    assert routing(first, second) == Routing(4, 2, 1)
    with pytest.raises(MtpforgeError, match="the config has no `num_experts_per_tok`"):
        routing({})


def test_agreement_counts_what_both_drop():
    found = agreement({"a": (0, 1, 2), "b": (0, 1, 3), "c": (1, 2, 4)}, 5)
    assert found == {"a": {"a": 2, "b": 1, "c": 1}, "b": {"a": 1, "b": 2, "c": 0}, "c": {"a": 1, "b": 0, "c": 2}}
