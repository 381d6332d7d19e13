"""How many stay, which, and what is refused: the options of a build as the library takes them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from pruning.counting import CountingCheckpoint
from pruning.layers import layer_of, pruned_copy

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.planning import plan
from mtpforge.pruning import lists
from mtpforge.pruning.expert_choice import Wish, compared, pruned
from mtpforge.source_choice import choose_source

BY_BIAS = (0, 1, 3, 5, 6, 7, 8, 9, 11, 12, 14, 15)  # the four highest of the stored bias: 2, 13, 10, 4


@pytest.fixture
def opened(tinyglm):
    return lambda layout: open_checkpoint(str(tinyglm(layout)))


def reconfigured(folder, to, **changes):
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return open_checkpoint(str(to))


def test_target_with_fewer_experts_is_matched_by_the_highest_bias(opened):
    found = pruned(opened("bf16"), opened("awq-int4-12experts"))
    assert (found.method, found.kept, found.n_stored) == ("bias", BY_BIAS, 16)
    assert len(found.scores) == 16


def test_nothing_is_read_where_all_experts_stay(opened):
    source = CountingCheckpoint(opened("bf16"))
    assert pruned(source, opened("awq-int4")).keeps_all
    assert pruned(source, opened("awq-int4-12experts"), Wish("keep")).keeps_all
    assert source.read_names == {}


def test_count_below_the_targets_is_taken(opened):
    found = pruned(opened("bf16"), opened("awq-int4"), Wish(8))
    assert len(found.kept) == 8
    assert set(found.kept) < set(BY_BIAS)


def test_more_than_the_target_has_are_the_plans_to_refuse(opened):
    source, target = opened("bf16"), opened("awq-int4-12experts")
    for n in (13, 14):
        kept = pruned(source, target, Wish(n)).kept
        with pytest.raises(MtpforgeError, match=f"{n} experts are to be kept, the target has 12") as caught:
            plan(source, target, kept=kept)
        assert "`--experts match`" in caught.value.fix
    with pytest.raises(MtpforgeError, match="the layer has 16 experts, the target 12"):
        plan(source, target)


def test_headers_of_the_target_decide_over_its_config(tinyglm, opened, tmp_path):
    """Stale twin, stale count itself: 12 are stored in the target's layers either way."""
    for number, changes in enumerate(({"num_experts": 16}, {"n_routed_experts": 16, "num_experts": 16})):
        target = reconfigured(tinyglm("awq-int4-12experts"), tmp_path / str(number), **changes)
        kept = pruned(opened("bf16"), target).kept
        assert kept == BY_BIAS
        made = plan(opened("bf16"), target, kept=kept)
        assert made.config["n_routed_experts"] == 12
        assert not {"num_experts", "num_local_experts"} & made.config.keys()
        assert "stale-num-experts" in {trap.id for trap in made.traps}


@pytest.mark.parametrize(
    ("kept", "what"),
    [
        ((0, 1, 2), "3 experts are fewer than the 4 that every token is sent to"),
        ((0, 1, 2, 16), "the source has no expert 16"),
        ((3, 2, 1, 0), "the experts to keep are not in ascending order, each once"),
        ((0, 1, 2, 2), "the experts to keep are not in ascending order, each once"),
    ],
)
def test_plan_refuses_a_list_that_is_no_choice(opened, kept, what):
    with pytest.raises(MtpforgeError, match=what):
        plan(opened("bf16"), opened("awq-int4"), kept=kept)


def test_groups_of_the_targets_config_are_pruned_alike(tinyglm, opened, tmp_path):
    target = reconfigured(tinyglm("awq-int4-12experts"), tmp_path / "t", n_group=4, topk_group=2)
    kept = pruned(opened("bf16"), target).kept
    assert [sum(number // 4 == group for number in kept) for group in range(4)] == [3, 3, 3, 3]
    with pytest.raises(MtpforgeError, match="of the 4 groups of experts 3, 4, 2, 3 stay"):
        plan(opened("bf16"), target, kept=(0, 1, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14))
    plan(opened("bf16"), target, kept=kept)


def test_copy_that_was_pruned_before_gives_its_list(tinyglm, opened, tmp_path):
    kept = (0, 2, 3, 4, 6, 7, 8, 9, 10, 12, 14, 15)
    copy = pruned_copy(tinyglm("bf16"), tmp_path / "copy", kept)
    found = pruned(opened("fp8"), opened("awq-int4-12experts"), Wish(copy=copy))
    assert (found.method, found.kept) == ("file", kept)
    assert "told by the rows of the router, exactly" in found.reason


@pytest.mark.parametrize(
    ("wish", "what"),
    [
        (Wish(method="bias", kept=BY_BIAS), "`--keep-experts` names the experts"),
        (Wish(method="file"), "`--prune-by file` needs the list"),
        (Wish(11, kept=BY_BIAS), "names 12 experts, `--experts` asks for 11"),
        (Wish(17), "the source has 16 experts, 17 are asked for"),
        (Wish(3), "3 experts are fewer than the 4"),
        (Wish(method="reap"), "`reap` needs inputs"),
    ],
)
def test_wish_that_contradicts_itself_or_the_source_is_refused(opened, wish, what):
    with pytest.raises(MtpforgeError, match=what):
        pruned(opened("bf16"), opened("awq-int4-12experts"), wish)


def test_scores_that_are_given_choose(opened):
    given = {"reap": [float(n % 4) for n in range(16)]}
    found = pruned(opened("bf16"), opened("awq-int4-12experts"), Wish(method="reap", given=given))
    assert found.kept == tuple(n for n in range(16) if n % 4)


def test_comparison_has_every_method_that_reads_the_router_alone(opened):
    source = CountingCheckpoint(opened("bf16"))
    found = compared(source, opened("awq-int4-12experts"), Wish())
    assert list(found.scores) == ["bias", "router-norm"]
    assert found.choices["bias"] == found.chosen.kept == BY_BIAS
    assert found.agreement["bias"]["bias"] == 4
    assert not [name for name in source.read_names if ".experts." in name]
    more = compared(source, opened("awq-int4-12experts"), Wish(kept=BY_BIAS[:12]), ["aimer"])
    assert list(more.choices) == ["file", "bias", "router-norm", "aimer"]
    assert more.agreement["file"]["bias"] == 4


def test_own_layer_with_more_experts_than_are_served_is_not_good_as_it_is(tinyglm, tmp_path):
    """Main layers pruned, MTP layer left: the engine would stop at the first expert too many."""
    whole = open_checkpoint(str(tinyglm("bf16")))
    engine, family = ENGINES["vllm"], family_of(whole.config)
    assert choose_source(whole, family, engine, open_checkpoint).self_sufficient
    target = reconfigured(tinyglm("bf16"), tmp_path / "t", n_routed_experts=12, num_experts=12)

    class Pruned(CountingCheckpoint):
        @property
        def names(self):
            return frozenset(
                name for name in self.real.names if not any(f"layers.2.mlp.experts.{n}." in name for n in range(12, 16))
            )

    choice = choose_source(Pruned(target), family, engine, open_checkpoint)
    assert not choice.self_sufficient
    assert layer_of(choice.source).n_experts == 16


@pytest.mark.parametrize("text", ["[3, 1, 2, 0]", '{"kept": [0, 1, 2, 3], "scores": {}}'])
def test_list_file_is_read_in_any_order(tmp_path, text):
    (tmp_path / "keep.json").write_text(text)
    assert lists.read(tmp_path / "keep.json") == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[]", "is no list of experts"),
        ("[1, true]", "is no list of experts"),
        ("[1, 2.0]", "is no list of experts"),
        ('{"keep": [1]}', "is no list of experts"),
        ("[1, 2, 1]", "names expert 1 twice"),
        ("1, 2", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        (None, "cannot be read"),
    ],
)
def test_list_file_that_is_none_is_refused(tmp_path, text, what):
    if text is not None:
        (tmp_path / "keep.json").write_text(text)
    with pytest.raises(MtpforgeError, match=what) as refused:
        lists.read(tmp_path / "keep.json")
    assert "a JSON list of numbers, `[0, 3, 4]`" in refused.value.fix or refused.value.fix == "name every expert once"


def measuring(calls):
    """Stands in for the layer run on inputs: reap would drop every fourth expert, frequency the last four."""

    def measure(source, target):
        calls.append((source, target))
        return {"reap": tuple(float(n % 4) for n in range(16)), "frequency": tuple(float(16 - n) for n in range(16))}

    return measure


def test_inputs_make_reap_the_default_and_are_run_once(opened):
    source, target, calls = opened("bf16"), opened("awq-int4-12experts"), []
    found = pruned(source, target, Wish(measure=measuring(calls)))
    assert (found.method, found.kept) == ("reap", tuple(n for n in range(16) if n % 4))
    assert calls == [(source, target)]
    by_count = pruned(source, target, Wish(method="frequency", measure=measuring(calls)))
    assert (by_count.method, by_count.kept) == ("frequency", tuple(range(12)))
    assert not Wish(measure=measuring(calls)).is_default


def test_inputs_are_not_run_where_nothing_depends_on_them(opened):
    calls = []
    assert pruned(opened("bf16"), opened("awq-int4"), Wish(measure=measuring(calls))).keeps_all
    assert pruned(opened("bf16"), opened("awq-int4-12experts"), Wish(kept=BY_BIAS, measure=measuring(calls)))
    with pytest.raises(MtpforgeError, match="3 experts are fewer than the 4"):
        pruned(opened("bf16"), opened("awq-int4-12experts"), Wish(3, measure=measuring(calls)))
    assert calls == []


def test_comparison_with_inputs_shows_what_they_say_beside_any_choice(opened):
    for wish in (Wish(), Wish(method="bias"), Wish(kept=BY_BIAS)):
        calls = []
        asked = replace(wish, measure=measuring(calls))
        found = compared(opened("bf16"), opened("awq-int4-12experts"), asked)
        assert list(found.scores) == ["bias", "router-norm", "frequency", "reap"]
        assert found.chosen.method == (wish.method or ("file" if wish.kept else "reap"))
        assert found.agreement["reap"]["frequency"] == 1
        assert len(calls) == 1


def test_method_that_needs_inputs_says_which_option_gives_them(opened):
    with pytest.raises(MtpforgeError, match="`frequency` needs inputs") as caught:
        pruned(opened("bf16"), opened("awq-int4-12experts"), Wish(method="frequency"))
    assert caught.value.fix.startswith("`--inputs FILE`; ")
