"""GLM-4.x: what is left out of the layer, and what a config must say of it."""

from __future__ import annotations

import pytest
from families.test_family import described

from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of

COPIES = ("embed_tokens.weight", "shared_head.head.weight")


def test_copies_of_embedding_and_head_are_dropped_by_their_size(census, release_config):
    family = family_of(release_config("target-glm-4.5"))
    sizes = {row.pattern: row.shape for row in family.dropped if row.shape}
    assert sizes == dict.fromkeys(COPIES, ("vocab_size", "hidden_size"))
    assert all(census("glm-4.5")[f"model.layers.92.{name}"] == ("BF16", (151552, 5120)) for name in COPIES)


@pytest.mark.parametrize(("key", "n_tensors"), [("use_qk_norm", 2), ("attention_bias", 3)])
def test_a_switch_of_the_config_says_whether_tensors_are_there(release_config, key, n_tensors):
    config = release_config("target-glm-4.5")
    assert len(described(config)) - len(described(config | {key: False})) == n_tensors


@pytest.mark.parametrize("key", ["use_qk_norm", "attention_bias"])
def test_a_switch_that_is_missing_or_no_switch_is_refused_by_name(release_config, key):
    config = release_config("target-glm-4.5")
    with pytest.raises(MtpforgeError) as caught:
        described({k: v for k, v in config.items() if k != key})
    assert str(caught.value) == (
        f"error: the config has no `{key}`\nwhere: config.json, `{key}`\ncause: tensors of the MTP layer depend on it\n"
        f" hint: state `{key}` in config.json, as the published base model does"
    )
    with pytest.raises(MtpforgeError, match=f"`{key}` is 1, not true or false"):
        described(config | {key: 1})
