"""Which experts a pruned copy has: copies made by plain slicing, then changed as training or saving would."""

from __future__ import annotations

import pytest
import torch
from pruning.counting import CountingCheckpoint
from pruning.layers import PREFIX, layer_of, pruned_copy, tensors_of

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.planning import plan
from mtpforge.pruning.recovering import recover

KEPT = (0, 1, 3, 5, 6, 8, 9, 11, 12, 13, 14, 15)
GATE = "mlp.gate.weight"


@pytest.fixture
def source(tinyglm):
    return CountingCheckpoint(open_checkpoint(str(tinyglm("bf16"))))


def recovered(source, copy):
    return recover(source, layer_of(source), copy, layer_of(copy))


def noise(tensor, share, seed=0):
    made = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)) * tensor.float().std() * share
    changed = (tensor.float() + made).to(tensor.dtype)
    assert not torch.equal(changed, tensor)
    return changed


def test_rows_of_the_router_name_the_experts_and_no_expert_is_read(source, tinyglm, tmp_path):
    found = recovered(source, pruned_copy(tinyglm("bf16"), tmp_path / "copy", KEPT))
    assert (found.numbers, found.by, found.margin) == (KEPT, "router", 1.0)
    assert set(source.read_names) == {PREFIX + GATE} == source.fetched


def test_router_that_was_only_cast_is_still_the_same(tinyglm, tmp_path):
    """F32 in the source, BF16 in the copy: no row is equal until both are BF16."""

    def finer(tensors):
        tensors[GATE] = noise(tensors[GATE].float(), 0.001)

    def cast(tensors):
        fine = tensors[GATE]
        tensors[GATE] = fine.bfloat16()
        assert not torch.equal(tensors[GATE].float(), fine)

    source = CountingCheckpoint(pruned_copy(tinyglm("bf16"), tmp_path / "source", range(16), finer))
    found = recovered(source, pruned_copy(tmp_path / "source", tmp_path / "copy", KEPT, cast))
    assert (found.numbers, found.by, found.margin) == (KEPT, "router", 1.0)


@pytest.mark.parametrize("share", [0.1, 100.0])
def test_experts_decide_where_the_router_was_changed(source, tinyglm, tmp_path, share):
    def change(tensors):
        tensors[GATE] = noise(tensors[GATE], share)

    found = recovered(source, pruned_copy(tinyglm("bf16"), tmp_path / "copy", KEPT, change))
    assert (found.numbers, found.by, found.margin) == (KEPT, "experts", 1.0)
    assert found.router_margin < 1
    assert "the router's rows were changed" in str(found)


def test_changed_router_and_quantized_experts_match_by_the_nearest(source, tinyglm, tmp_path):
    """The pruned copy is a draft in INT4, its router another."""
    from drafts import changed

    target = open_checkpoint(str(tinyglm("awq-int4-12experts")))
    build(plan(source, target, kept=KEPT), {"source": source, "target": target}, tmp_path / "draft", check="off")

    def change(tensors):
        tensors[PREFIX + GATE] = noise(tensors[PREFIX + GATE], 100.0)

    copy = open_checkpoint(str(changed(tmp_path / "draft", tmp_path / "changed", change)))
    found = recovered(source, copy)
    assert (found.numbers, found.by) == (KEPT, "experts")
    assert 0.5 < found.margin < 1
    assert f"margin {found.margin:.2f}" in str(found)


def test_margin_is_how_much_nearer_the_nearest_is(source, tinyglm, tmp_path):
    """Against distances computed one by one."""

    def change(tensors):
        tensors[GATE] = noise(tensors[GATE], 0.5)
        for expert in range(len(KEPT)):
            name = f"mlp.experts.{expert}.gate_proj.weight"
            tensors[name] = noise(tensors[name], 0.5, seed=expert)

    copy = pruned_copy(tinyglm("bf16"), tmp_path / "copy", KEPT, change)
    found = recovered(source, copy)
    ours, theirs = tensors_of(tinyglm("bf16")), tensors_of(tmp_path / "copy")
    margins = []
    for expert in range(len(KEPT)):
        held = theirs[f"mlp.experts.{expert}.gate_proj.weight"][:8].double()
        distances = sorted(
            float((held - ours[f"mlp.experts.{n}.gate_proj.weight"][:8].double()).norm()) for n in range(16)
        )
        margins.append(1 - distances[0] / distances[1])
    assert found.numbers == KEPT
    assert found.by == "experts"
    assert found.margin == pytest.approx(min(margins), rel=1e-4)


def test_experts_in_another_order_are_told(source, tinyglm, tmp_path):
    shuffled = (5, 0, 1, 3, 6, 8, 9, 11, 12, 13, 15, 14)
    found = recovered(source, pruned_copy(tinyglm("bf16"), tmp_path / "copy", shuffled))
    assert found.numbers == shuffled
    assert found.kept == KEPT
    assert "in another order" in str(found)


def test_changed_experts_under_a_slightly_changed_router_match_by_its_nearest_rows(source, tinyglm, tmp_path):
    def change(tensors):
        tensors[GATE] = noise(tensors[GATE], 0.1)
        for name in [n for n in tensors if n.startswith("mlp.experts.")]:
            tensors[name] = noise(tensors[name], 100.0)

    found = recovered(source, pruned_copy(tinyglm("bf16"), tmp_path / "copy", KEPT, change))
    assert (found.numbers, found.by) == (KEPT, "router")
    assert 0.2 < found.margin < 1


def test_nobodys_experts_are_refused_with_both_margins(source, tinyglm, tmp_path):
    def change(tensors):
        for name in [n for n in tensors if n.startswith("mlp.experts.") or n == GATE]:
            tensors[name] = noise(tensors[name], 100.0)

    with pytest.raises(MtpforgeError, match=r"which experts .* kept cannot be told") as caught:
        recovered(source, pruned_copy(tinyglm("bf16"), tmp_path / "copy", KEPT, change))
    assert "margin of the router's rows 0.0" in caught.value.where


def test_larger_layer_is_no_pruned_copy(tinyglm, tmp_path):
    small = pruned_copy(tinyglm("bf16"), tmp_path / "copy", KEPT)
    whole = open_checkpoint(str(tinyglm("bf16")))
    with pytest.raises(MtpforgeError, match="is no pruned copy of the source's layer"):
        recovered(small, whole)


def test_expert_that_is_there_twice_is_refused(source, tinyglm, tmp_path):
    """Each match alone would be exact."""

    def double(tensors):
        tensors[GATE][3] = tensors[GATE][2]
        for name in [n for n in tensors if n.startswith("mlp.experts.3.")]:
            tensors[name] = tensors[name.replace(".3.", ".2.")].clone()

    with pytest.raises(MtpforgeError, match="cannot be told"):
        recovered(source, pruned_copy(tinyglm("bf16"), tmp_path / "copy", KEPT, double))
