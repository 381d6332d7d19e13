"""What vLLM stored of its hidden states: the last layers go on from there; other files are refused."""

from __future__ import annotations

import pytest
import torch
from nextn.copies import opened, twin
from safetensors.torch import save_file
from slow_twins import decoder
from tokenizers import Tokenizer

from mtpforge.errors import MtpforgeError
from mtpforge.nextn import capturing, extracted


@pytest.fixture(scope="module")
def tokens(tinyglm):
    """Token ids of the evaluation text, by the tokenizer's own library."""
    text = (tinyglm("bf16").parent / "eval.txt").read_text().split("\f")[0]
    return Tokenizer.from_file(str(tinyglm("bf16") / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.fixture
def stored(tmp_path):
    """A folder as vLLM 0.33's ExampleHiddenStatesConnector leaves it: one file and one empty lock a request."""

    def save(states, ids, request="cmpl-1"):
        folder = tmp_path / "states"
        folder.mkdir(exist_ok=True)
        found = {"hidden_states": states[:, None].bfloat16(), "token_ids": torch.tensor(ids)}
        save_file(found, folder / f"{request}.safetensors")
        (folder / f"{request}.safetensors.lock").touch()
        return folder

    return save


def test_last_layers_go_on_from_what_vllm_stored(tinyglm, tokens, stored):
    """Layer 1 is the last with an indexer; vLLM's states before it are BF16."""
    target, found = opened(tinyglm("bf16")), twin(tinyglm("bf16"))
    assert target.entry == 1
    parts = [tokens[:12], tokens[700:705]]
    before = [torch.stack(decoder.hidden_states(*found, ids, 1)) for ids in parts]
    expected = [torch.stack(decoder.hidden_states(*found, ids)) for ids in parts]
    for number, (states, ids) in enumerate(zip(before, parts, strict=True)):
        folder = stored(states, ids, f"cmpl-{number}")
    made = list(capturing.finish(target, extracted.windows_of(folder, target, 1000), target.entry))
    for sequence, ids, right in zip(made, parts, expected, strict=True):
        assert sequence.token_ids.tolist() == ids
        assert float((sequence.hidden.double() - right).norm() / right.norm()) < 0.01
    exact = [capturing.Entering(torch.tensor(i), s.float()) for i, s in zip(parts, before, strict=True)]
    for sequence, right in zip(capturing.finish(target, exact, 1), expected, strict=True):
        torch.testing.assert_close(sequence.hidden.double(), right, rtol=0, atol=5e-5)


def test_requests_beyond_the_limit_are_left_out(tinyglm, stored):
    target = opened(tinyglm("bf16"))
    stored(torch.zeros(5, 128), range(5), "a")
    folder = stored(torch.zeros(4, 128), range(4), "b")
    assert [len(w.token_ids) for w in extracted.windows_of(folder, target, 9)] == [5, 4]
    assert [len(w.token_ids) for w in extracted.windows_of(folder, target, 8)] == [5]
    with pytest.raises(MtpforgeError, match="the first request has more tokens than may be used"):
        extracted.windows_of(folder, target, 4)


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"hidden_states": torch.zeros(3, 2, 128), "token_ids": torch.arange(3)}, "one layer of 3 tokens is BF16"),
        ({"hidden_states": torch.zeros(3, 1, 64), "token_ids": torch.arange(3)}, "one layer of 3 tokens is BF16"),
        ({"hidden_states": torch.zeros(3, 1, 128), "token_ids": torch.arange(2)}, "one layer of 2 tokens is BF16"),
        ({"hidden_states": torch.zeros(0, 1, 128), "token_ids": torch.arange(0)}, "not I64 [tokens]"),
        ({"hidden_states": torch.zeros(3, 1, 128)}, "it holds 1 tensors, not"),
        (
            {"hidden_states": torch.zeros(3, 1, 128), "token_ids": torch.tensor([1, 2, 512])},
            "lies beyond the vocabulary",
        ),
        ({"hidden_states": torch.full((1, 1, 128), torch.nan), "token_ids": torch.arange(1)}, "that are no numbers"),
    ],
)
def test_file_that_vllm_would_not_write_for_this_target_is_refused(tinyglm, tmp_path, tensors, why):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(MtpforgeError) as error:
        extracted.windows_of(tmp_path, opened(tinyglm("bf16")), 100)
    assert why in error.value.why
    assert error.value.where == f"{tmp_path}/a.safetensors"


def test_folder_without_states_is_refused(tinyglm, tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(MtpforgeError, match="there are no stored hidden states"):
            extracted.windows_of(folder, opened(tinyglm("bf16")), 100)
