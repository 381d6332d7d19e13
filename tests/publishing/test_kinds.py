"""Grafts, deltas and merges in the place of drafts: named as what they are, with a command that fits."""

from __future__ import annotations

import pytest

import mtpforge
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MtpforgeError


@pytest.fixture(scope="module")
def made(tinyglm, tmp_path_factory):
    """Kind -> a folder of that kind."""
    home = tmp_path_factory.mktemp("kinds")
    target, layer = tinyglm("awq-int4"), tinyglm("bf16")
    mtpforge.delta(layer, target, out=home / "delta")
    mtpforge.graft(layer, target, out=home / "graft", link="sym")
    (home / "merge").mkdir()  # what a merge is told by
    (home / "merge" / "mtpforge-merge.json").write_text("{}")
    return home


@pytest.mark.parametrize("kind", ["delta", "graft", "merge"])
def test_card_and_push_are_for_drafts_and_say_what_is_for_others(made, tinyglm, kind):
    place = made / kind
    for call, said in (
        (lambda: mtpforge.card(place), "only drafts get a card"),
        (lambda: mtpforge.push(place, "ann/x", target=tinyglm("awq-int4"), dry_run=True), "only drafts are pushed"),
    ):
        with pytest.raises(MtpforgeError, match=f"is a {kind}: {said}") as caught:
            call()
        assert f"{place} --private`" in caught.value.fix
    assert f"`hf upload ann/x {place} --private`" in caught.value.fix


def test_checkpoint_that_is_open_is_told_too(made):
    with pytest.raises(MtpforgeError, match="is a graft: only drafts get a card"):
        mtpforge.card(open_checkpoint(made / "graft"))


def test_delta_in_the_place_of_a_checkpoint_is_told_as_one(made, tinyglm, tmp_path):
    delta, target = made / "delta", tinyglm("awq-int4")
    for call in (
        lambda: mtpforge.graft(delta, target, out=tmp_path / "out"),
        lambda: mtpforge.verify(delta, target),
        lambda: mtpforge.inspect(delta),
    ):
        with pytest.raises(MtpforgeError, match="is a delta, no checkpoint") as caught:
            call()
        assert f"`mtpforge graft --delta {delta} --into CKPT -o DIR`" in caught.value.fix
