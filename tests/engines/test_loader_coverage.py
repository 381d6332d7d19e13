"""Where a view lies in its tensor, and what a set of blocks leaves open: against element-wise marking."""

from __future__ import annotations

import itertools

import pytest
import torch

from mtpforge.engines.loading.coverage import Coverage, box_of

BASE = torch.empty(4, 6, 5)
VIEWS = {
    "whole": BASE,
    "one expert": BASE[2],
    "rows of one expert": BASE[1, 2:5],
    "columns of all": BASE[:, :, 1:3],
    "one element": BASE[3, 5, 4],
    "transposed block": BASE[0, 1:4, 2:4].T,
    "narrow in two": BASE[1:3, 4:6],
    "unsqueezed": BASE[2, :, 3].unsqueeze(0),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_box_is_the_set_of_elements_that_a_write_through_the_view_changes(view):
    BASE.zero_()
    view.fill_(1)
    box = box_of(view, BASE)
    marked = {tuple(cell) for cell in torch.nonzero(BASE).tolist()}
    assert set(itertools.product(*(range(*edges) for edges in box))) == marked


@pytest.mark.parametrize(
    "view",
    [BASE[:, ::2], BASE.view(24, 5)[:, 1], BASE.view(-1)[7:12], torch.empty(6).expand(4, 6)],
    ids=["every other row", "two dimensions as one", "across a row's end", "expanded"],
)
def test_what_is_no_block_is_not_called_one(view):
    assert box_of(view, BASE) is None


def test_view_between_the_elements_of_a_strided_tensor_is_no_block_of_it():
    base = torch.empty(4, 8)[:, ::2]
    assert box_of(base[1], base) == ((1, 2), (0, 4))
    assert box_of(base.as_strided((4,), (2,), 1), base) is None


def test_view_on_the_meta_device_has_a_box():
    base = torch.empty(8, 4, device="meta")
    assert box_of(base[2:4], base) == ((2, 4), (0, 4))


def test_parameter_of_one_expert_has_a_box():
    base = torch.empty(1, 4, 3)
    assert box_of(base[0, 2:4], base) == ((0, 1), (2, 4), (0, 3))


@pytest.mark.parametrize("seed", range(20))
def test_missing_and_repeated_blocks_agree_with_counting_every_element(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    shape = tuple(draw(1, 6) for _ in range(draw(1, 4)))
    count = torch.zeros(shape, dtype=torch.int32)
    coverage = Coverage(shape)
    for _ in range(draw(1, 5)):
        box = tuple((start, draw(start + 1, n + 1)) for start, n in ((draw(0, n), n) for n in shape))
        count[tuple(slice(*edges) for edges in box)] += 1
        coverage.add(box)
    missing = {cell for box in coverage.missing() for cell in itertools.product(*(range(*edges) for edges in box))}
    assert missing == {tuple(cell) for cell in torch.nonzero(count == 0).tolist()}
    assert coverage.repeated() == bool((count > 1).any())


def test_untouched_scalar_is_missing_and_a_touched_one_is_not():
    coverage = Coverage(())
    assert coverage.missing() == [()]
    coverage.add(())
    assert coverage.missing() == []
    assert not coverage.repeated()
    coverage.add(())
    assert coverage.repeated()


def test_empty_tensor_misses_nothing():
    assert Coverage((0, 4)).missing() == []


def test_ranks_add_up():
    left, right = Coverage((4,)), Coverage((4,))
    left.add(((0, 2),))
    right.add(((2, 4),))
    assert left.missing() == [((2, 4),)]
    left.join(right)
    assert left.missing() == []
