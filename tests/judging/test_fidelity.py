"""Fidelity: distances against plain loops, every kind of broken draft named by its module, what is never ranked."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET

import pytest
import torch
from drafts import changed, reconfigured
from nextn.calibration import captured, twin, write
from nextn.copies import twin as quantized
from safetensors.torch import load_file
from slow_twins import speculating as slow

import mtpforge
from mtpforge.judging import verdicts
from mtpforge.judging.pairs import ratio, relative
from mtpforge.report import plain
from mtpforge.reporting import drawing
from mtpforge.reporting.judged import size_against_loss
from mtpforge.reporting.values import At

KEPT = tuple(n for n in range(16) if n not in (2, 7, 8, 13))
EXPERT = "model.layers.3.mlp.experts.{}."


def twins(dense, folder, ids, hidden, k):
    """Of the rows that have k steps, in step k: the target's, the dense layer's and the draft's probabilities."""
    tensors, config = twin(dense)
    around = {name: tensor for name, tensor in tensors.items() if "layers" not in name}
    others, other_config = quantized(folder)
    for first in range(len(ids) - k):
        ours = slow.cycle({**around, **others}, other_config, ids, hidden, first, k)[-1]
        theirs = slow.cycle(tensors, config, ids, hidden, first, k)[-1]
        yield [slow.probabilities(tensors, state) for state in (hidden[first + k], theirs, ours)]


def mean(values):
    return sum(values) / len(values)


def test_distances_are_those_of_plain_loops(tinyglm, made, tmp_path):
    dense, folder, k = tinyglm("bf16"), made("int4-g32-asym"), 2
    ids, at, hidden = (each[:5] for each in captured(dense)[0])
    few = write(tmp_path / "few.safetensors", [(ids, at, hidden)])
    found = mtpforge.fidelity(folder, dense, inputs=few, k=k, workers=1).drafts[0]
    step, rows = found.steps[-1], list(twins(dense, folder, ids, hidden.double(), k))
    assert [each.n_rows for each in found.steps] == [4, 3]
    assert step.total_variation == pytest.approx(mean([slow.total_variation(p, q) for _, p, q in rows]), rel=1e-3)
    assert step.divergence == pytest.approx(mean([slow.divergence(p, q) for _, p, q in rows]), rel=2e-3)
    assert step.acceptance == pytest.approx(mean([slow.accepted(t, q) for t, _, q in rows]), rel=1e-3)
    assert step.acceptance_reference == pytest.approx(mean([slow.accepted(t, p) for t, p, _ in rows]), rel=1e-3)
    same = [max(range(len(p)), key=p.__getitem__) == max(range(len(q)), key=q.__getitem__) for _, p, q in rows]
    assert step.agreement == pytest.approx(mean(same))


@pytest.fixture(scope="module")
def both(tinyglm, made, inputs):
    """An INT4 draft, and the dense layer itself."""
    return mtpforge.fidelity(
        made("int4-g32-asym"), tinyglm("bf16"), inputs=inputs, k=2, compare=[made("bf16")], workers=1
    )


def test_layer_beside_itself_is_the_same_to_the_bit(both):
    found = both.drafts[1]
    assert found.ok
    for step in found.steps:
        assert (step.total_variation, step.divergence, step.agreement, step.routing) == (0, 0, 1, 1)
        assert step.acceptance == step.acceptance_reference > 0.1
    assert {swap.total_variation for swap in found.swaps if swap.kind != "routed experts"} == {0}
    assert len({swap.module for swap in found.swaps}) == 10 + 3 + 48 + 8  # a router with its bias; experts; norms


def test_workers_change_no_bit(both, tinyglm, made, inputs):
    again = mtpforge.fidelity(made("int4-g32-asym"), tinyglm("bf16"), inputs=inputs, k=2, workers=3)
    assert again.drafts[0] == both.drafts[0]
    assert both.drafts[0].steps[1].total_variation > 0.001


def swap_gate_and_up(tensors):
    gate, up = EXPERT.format(5) + "gate_proj.", EXPERT.format(5) + "up_proj."
    for name in [name for name in tensors if name.startswith(gate)]:
        other = name.replace(gate, up)
        tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()


def invert_global_scales(tensors):
    for part in ("gate_proj", "up_proj"):
        name = f"{EXPERT.format(5)}{part}.weight_scale_2"
        tensors[name] = 1 / tensors[name]


def zero_expert(tensors):
    for name in [name for name in tensors if name.startswith(EXPERT.format(7))]:
        tensors[name] = torch.zeros_like(tensors[name])


def shuffle_router(tensors):
    name = "model.layers.3.mlp.gate.weight"
    tensors[name] = tensors[name].roll(1, 0)


def all_at_once(tensors):
    for change in (swap_gate_and_up, zero_expert, shuffle_router):
        change(tensors)


SWAPPED = {"mlp.experts.5.gate_proj", "mlp.experts.5.up_proj"}
ZERO = {f"mlp.experts.7.{part}_proj" for part in ("gate", "up", "down")}
BROKEN = [
    ("bf16", all_at_once, SWAPPED | ZERO | {"mlp.gate"}),
    ("nvfp4-w4a16", invert_global_scales, SWAPPED),
    *(
        pytest.param(*each, marks=pytest.mark.slow)
        for each in (
            ("bf16", swap_gate_and_up, SWAPPED),
            ("int4-g32-asym", swap_gate_and_up, SWAPPED),
            ("bf16", zero_expert, ZERO),
            ("bf16", shuffle_router, {"mlp.gate"}),
        )
    ),
]


@pytest.mark.parametrize(("name", "change", "modules"), BROKEN)
def test_broken_module_is_named_and_nothing_else(tinyglm, made, inputs, tmp_path, name, change, modules):
    folder = changed(made(name), tmp_path / "broken", change)
    found = mtpforge.fidelity(folder, tinyglm("bf16"), inputs=inputs, k=1)
    draft = found.drafts[0]
    assert not found.report.ok
    (check,) = [check for check in draft.checks if check.name == "modules"]
    assert check.verdict == "failed"
    named = {swap.module for swap in draft.swaps if swap.module and swap.weight_error >= verdicts.FOREIGN}
    assert named == modules
    assert sum(f"`{module}`" in check.detail for module in modules) == min(len(modules), 3)
    worst = next(swap for swap in draft.swaps if swap.module)
    assert worst.module in modules
    assert worst.total_variation > 0.01


@pytest.mark.parametrize(
    ("changes", "runs"),
    [
        ({"scoring_func": "softmax"}, False),
        ({"routed_scaling_factor": 1.0, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}, True),
    ],
)
def test_config_that_computes_otherwise_is_named_with_its_module(tinyglm, made, inputs, tmp_path, changes, runs):
    folder = reconfigured(made("bf16"), tmp_path / "other", lambda config: config.update(changes))
    draft = mtpforge.fidelity(folder, tinyglm("bf16"), inputs=inputs, k=1).drafts[0]
    (check,) = [check for check in draft.checks if check.name == "config"]
    assert check.verdict == "failed"
    assert "`mlp.gate` computes otherwise" in check.detail
    assert ("`self_attn` computes otherwise" in check.detail) == runs
    assert bool(draft.steps) == runs
    assert all(step.total_variation > 0.01 for step in draft.steps)


@pytest.mark.slow
def test_fewer_bits_are_further_away_and_never_foreign(tinyglm, made, inputs):
    names = ("bf16", "fp8-block128", "nvfp4-w4a16", "int4-g32-asym", "int3", "int2")
    folders = [made(name) for name in names]
    found = mtpforge.fidelity(folders[0], tinyglm("bf16"), inputs=inputs, k=1, compare=folders[1:])
    far = {name: draft.steps[0].total_variation for name, draft in zip(names, found.drafts, strict=True)}
    assert far["bf16"] < far["fp8-block128"] < far["nvfp4-w4a16"] < far["int3"] < far["int2"]
    assert far["fp8-block128"] < far["int4-g32-asym"] < far["int3"]
    ranked = [draft.steps[0].total_variation for draft in found.ranked]
    assert ranked == sorted(far.values())
    for draft in found.drafts:
        step = draft.steps[0]
        assert step.acceptance_reference - step.acceptance <= step.total_variation + 1e-9
        assert max(swap.weight_error for swap in draft.swaps if swap.weight_error is not None) < 0.62


def test_pruned_draft_is_paired_by_its_router_and_pays_for_what_it_lost(tinyglm, made, inputs):
    draft = mtpforge.fidelity(made("bf16", KEPT), tinyglm("bf16"), inputs=inputs, k=2).drafts[0]
    kinds = {swap.kind: swap for swap in draft.swaps if not swap.module}
    assert draft.n_experts == 12
    assert set(kinds) == {"dropped experts"}  # what is left is the reference's to the bit
    assert kinds["dropped experts"].total_variation == pytest.approx(draft.steps[0].total_variation, rel=1e-5)
    assert 0.5 < draft.steps[0].routing < 1


def test_unknown_experts_are_refused(tinyglm, made, inputs, tmp_path):
    def foreign(tensors):
        tensors["model.layers.3.mlp.gate.weight"][4] *= 2

    folder = changed(made("bf16", KEPT), tmp_path / "foreign", foreign)
    with pytest.raises(mtpforge.MtpforgeError, match="which of the reference's 16 experts the draft's 12 are"):
        mtpforge.fidelity(folder, tinyglm("bf16"), inputs=inputs, k=1)


def test_steps_that_the_tokens_asked_for_do_not_hold_are_told_from_short_sequences(run, tinyglm, made, inputs):
    words = ("fidelity", str(made("int4-g32-asym")), "--reference", str(tinyglm("bf16")), "--inputs", str(inputs))
    longest = int(load_file(inputs)["sequence_starts"].diff().max())
    ran = run(*words, "--tokens", "5", "--k", "16")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: 5 tokens of the inputs leave none for 16 steps")
    assert ran.err.splitlines()[-1] == " hint: `--tokens 17` or more, or `--k 4`"
    for better in (("--tokens", "17", "--k", "16"), ("--tokens", "5", "--k", "4")):
        assert run(*words, *better).code == 0
    with pytest.raises(
        mtpforge.MtpforgeError, match=f"no sequence of the inputs is longer than {longest} tok"
    ) as caught:
        mtpforge.fidelity(made("int4-g32-asym"), tinyglm("bf16"), inputs=inputs, k=longest)
    assert (caught.value.code, caught.value.fix.endswith(f"`--k {longest - 1}`")) == (3, True)


def test_where_nothing_differs_no_table_is_begun(run, tinyglm, made, inputs):
    ran = run("fidelity", str(made("bf16")), "--reference", str(tinyglm("bf16")), "--inputs", str(inputs))
    assert "there is nothing to swap in alone" in ran.out
    assert "swapped in alone " not in ran.out


def test_hint_names_the_layer_that_lacks_something(run, tinyglm, made, tmp_path):
    def lacking(tensors):
        del tensors["model.layers.3.self_attn.o_proj.weight"]

    cut, whole, without = changed(made("bf16"), tmp_path / "cut", lacking), made("bf16"), tinyglm("awq-int4")
    what = "error: `self_attn.o_proj` of the MTP layer is missing\n"
    ran = run("fidelity", str(cut), "--reference", str(whole))
    assert ran.err.startswith(f"{what}where: {cut}\n")
    assert "--reference" not in ran.err
    assert "hint: build or download the draft again" in ran.err
    ran = run("fidelity", str(whole), "--reference", str(cut))
    assert ran.err.startswith(f"{what}where: {cut}\n")
    assert "name another `--reference`" in ran.err
    ran = run("fidelity", str(without), "--reference", str(whole))
    assert ran.err.splitlines()[-1] == " hint: name a draft: `mtpforge build --target CKPT` makes one"


def test_synthetic_inputs_are_marked_and_rank_nothing(tinyglm, made):
    remarks = []
    found = mtpforge.fidelity(made("int4-g32-asym"), tinyglm("bf16"), k=1, tokens=128, on_remark=remarks.append)
    assert found.is_synthetic
    assert found.inputs == ""
    assert any("synthetic" in str(remark) for remark in remarks)
    (check,) = [check for check in found.drafts[0].checks if check.name == "inputs"]
    assert (check.verdict, found.report.ok) == ("not checked", True)
    assert found.drafts[0].steps[0].acceptance is None
    with pytest.raises(mtpforge.MtpforgeError, match="not ranked on synthetic inputs") as caught:
        mtpforge.fidelity(made("int4-g32-asym"), tinyglm("bf16"), compare=[made("bf16")])
    assert caught.value.code == 2


def test_command_says_no_with_the_module_and_one_document(run, tinyglm, made, inputs, tmp_path):
    broken = changed(made("bf16"), tmp_path / "broken", zero_expert)
    arguments = ("--reference", str(tinyglm("bf16")), "--inputs", str(inputs), "--k", "1")
    ran = run("fidelity", str(broken), *arguments, "--compare", str(made("bf16")), "--json")
    document = json.loads(ran.out)
    assert (ran.code, document["ok"], document["exit_code"]) == (1, False, 1)
    assert document["ranked"] == [str(made("bf16")), str(broken)]
    drafts = document["fidelity"]["drafts"]
    assert [draft["steps"][0]["step"] for draft in drafts] == [1, 1]
    failed = [check for check in document["report"]["checks"] if check["verdict"] == "failed"]
    assert "`mlp.experts.7.gate_proj` by 1.00 of its size" in failed[0]["detail"]


def test_bound_and_worst_modules_are_shown(run, both, tinyglm, made, inputs):
    arguments = ("--reference", str(tinyglm("bf16")), "--inputs", str(inputs), "--k", "2")
    ran = run("fidelity", str(made("int4-g32-asym")), *arguments)
    assert ran.code == 0
    bounds = ", ".join(f"{step.total_variation:.4f}" for step in both.drafts[0].steps)
    assert f"no target loses more of a step's acceptance on these inputs than {bounds}\n" in ran.out
    assert "  routed experts" in ran.out
    assert "  mlp.experts." in ran.out or "  self_attn." in ran.out


def test_picture_has_every_draft_at_its_size(both, tmp_path):
    drawing.save(tmp_path / "p.svg", lambda: size_against_loss(At(plain(both))))
    words = [each.strip() for each in ET.parse(tmp_path / "p.svg").getroot().itertext()]
    assert words.count("int4-g32-asym") == words.count("bf16") == 1
    assert f"{both.n_tokens:,} captured tokens" in words


@pytest.mark.parametrize("level", ["ALARM", "HALF"])
def test_levels_decide(level):
    from mtpforge.judging.fidelity import StepFidelity

    most = getattr(verdicts, level)
    for above in (-0.01, 0.01):
        reference = 0.84 if level == "ALARM" else None
        accepted = 0.84 - most - above if level == "ALARM" else None
        far = most + above if level == "HALF" else 0.6
        step = StepFidelity(1, 9, far, 0.0, 1.0, 0.0, 1.0, accepted, reference)
        (check,) = verdicts.of_steps([step], is_synthetic=False)
        assert (check.verdict == "failed") == (above > 0)
    near = dataclasses.replace(step, total_variation=0.13, acceptance=None, acceptance_reference=None)
    assert next(verdicts.of_steps([near], is_synthetic=False)).verdict == "passed"


def test_size_of_nothing_divides_nothing():
    """A reference of zeros, as headers without weights read, has no error of its own, and any other an endless one."""
    zeros, ones = torch.zeros(3), torch.ones(3)
    assert ratio([(zeros, zeros)]) == 0
    assert ratio([(ones, zeros)]) == relative(1.0, 0.0) == float("inf")
    assert ratio([(zeros, ones), (ones, ones)]) == pytest.approx(0.5**0.5)
