"""docs/calibration.md: its snippet fills a file, its flags ask for the layer that capture goes on from."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch

from mtpforge.nextn import inputs, sequences

PAGE = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text()


class Answer:
    """vllm/outputs.py (0.33.0): PoolingRequestOutput with a PoolingOutput, as far as it is used."""

    def __init__(self, token_ids):
        self.prompt_token_ids = token_ids
        self.outputs = types.SimpleNamespace(data=states_of(token_ids))


def states_of(token_ids):
    return torch.tensor(token_ids)[:, None].bfloat16() / torch.arange(1, 129)


class LLM:
    def __init__(self, model, **how):
        assert (how["runner"], how["convert"]) == ("pooling", "embed")
        assert Path(model).is_dir()

    def encode(self, prompts, *, pooling_task, pooling_params):
        assert (pooling_task, pooling_params.use_activation) == ("token_embed", False)
        return [Answer(prompt["prompt_token_ids"]) for prompt in prompts]


def test_snippet_fills_a_file_from_what_vllm_answers(tinyglm, tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    params = lambda use_activation: types.SimpleNamespace(use_activation=use_activation)  # noqa: E731
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=LLM, PoolingParams=params))
    (tmp_path / "GLM-5.2-AWQ-INT4").symlink_to(tinyglm("awq-int4"))
    (tmp_path / "calibration.txt").write_text("the cat sat on the mat. " * 500)
    exec(compile(snippet, "docs/calibration.md", "exec"), {})
    made = inputs.read(tmp_path / "inputs.safetensors", hidden_size=128, vocab_size=512)
    assert made.target == "GLM-5.2-AWQ-INT4"
    lengths = [len(one.token_ids) for one in made]
    assert lengths[:-1] == [2048] * (len(lengths) - 1)
    for one in made:
        assert torch.equal(one.hidden.bfloat16(), states_of(one.token_ids.tolist()).bfloat16())
        assert one.positions.tolist() == list(range(len(one.token_ids)))


def test_flags_of_the_connector_ask_for_the_last_layer_with_an_indexer(release_config):
    flags = dict(re.findall(r"--([a-z-]+-config) '(\{.*?\})'", PAGE, re.DOTALL))
    (layer,) = json.loads(flags["speculative-config"])["draft_model_config"]["hf_config"][
        "eagle_aux_hidden_state_layer_ids"
    ]
    assert json.loads(flags["kv-transfer-config"])["kv_connector"] == "ExampleHiddenStatesConnector"
    for name in ("target-bf16", "target-awq-int4-no-nextn-field", "target-nvfp4-lukealonso"):
        kinds = release_config(name)["indexer_types"]
        assert (layer, kinds[layer], set(kinds[layer + 1 :])) == (74, "full", {"shared"})
    assert f"computes layers {layer} to 77" in PAGE


def test_table_of_the_file_is_the_one_that_is_checked():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) or (\w+) \|", PAGE, re.MULTILINE)
    assert {name: dtypes for name, *dtypes in rows} == {n: list(d) for n, d in sequences.DTYPES_OF.items()}
    assert f"`{sequences.FORMAT}`" in PAGE


@pytest.mark.parametrize("tokens", [32_768])
def test_size_of_the_file_is_as_told(tokens):
    assert f"{tokens * (2 * 6144 + 16) / 1e6:.0f} MB" in PAGE
