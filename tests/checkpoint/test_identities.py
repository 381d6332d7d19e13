"""What of an identity, a path or a hub's name tells which checkpoint it is of."""

from __future__ import annotations

import pytest

from mtpforge.checkpoint.checkpoint import own_name, place_of


@pytest.mark.parametrize(
    ("identity", "place"),
    [("org/name@0123abcd", "org/name"), ("name#0123", "name"), ("a@b#0123", "a@b"), ("a#b#0123", "a#b"), ("", "")],
)
def test_place_of_an_identity_is_what_stands_before_its_hash_or_commit(identity, place):
    assert place_of(identity) == place


@pytest.mark.parametrize(
    "place",
    ["org/Name", "/models/name", "./name/", "/hub/models--org--Name/snapshots/0123abc/", "name", "C:\\hub\\Name"],
)
def test_own_name_is_that_of_the_checkpoint_wherever_it_lies(place):
    assert own_name(place) == "name"
