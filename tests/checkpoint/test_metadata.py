from __future__ import annotations

import json

import pytest

from mtpforge.checkpoint import metadata
from mtpforge.errors import MtpforgeError

BLOCK = {"quant_method": "fp8"}


def sides(**files):
    return lambda name: files.get(name.removesuffix(".json"))


MIXED = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": BLOCK},
        {"compression_config": BLOCK},
        {"text_config": {"quantization_config": BLOCK}},
        {"quantization": BLOCK},
        {"quantization_config": None, "compression_config": BLOCK},
    ],
)
def test_the_block_is_found_wherever_releases_put_it(config):
    assert metadata.quantization(config, sides()) == BLOCK


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"compression_config": BLOCK}])
def test_modelopts_side_file_counts_when_the_config_has_no_block(config):
    """vLLM 0.33.0, transformers_utils/config.py:953-962."""
    assert metadata.quantization(config, sides(hf_quant_config=b'{"bits": 4}')) == {"bits": 4}


@pytest.mark.parametrize("stated", ["1e999", "-1e999", "NaN", "Infinity", "-1", str(1 << 63), "true", '"8"', "null"])
def test_a_total_that_no_disk_holds_is_none(stated):
    assert metadata.total_size(f'{{"metadata": {{"total_size": {stated}}}}}'.encode()) is None


@pytest.mark.parametrize(("stated", "wanted"), [("8", 8), ("8.0", 8), ("0", 0), (str(1 << 62), 1 << 62)])
def test_a_total_is_a_whole_number_of_bytes(stated, wanted):
    assert metadata.total_size(f'{{"metadata": {{"total_size": {stated}}}}}'.encode()) == wanted


def test_an_empty_block_is_a_block():
    assert metadata.quantization({"quantization_config": {}}, sides(hf_quant_config=b'{"bits": 4}')) == {}


@pytest.mark.parametrize("name", ["quantize_config", "quant_config", "quantization_config"])
def test_no_other_side_file_counts(name):
    assert metadata.quantization({}, sides(**{name: b'{"bits": 4}'})) == {}


def test_mixed_precision_without_layers_is_the_side_file_whole():
    """vLLM 0.33.0, model_loader/weight_utils.py, get_quant_config: nothing of config.json's block is kept."""
    side = {"producer": {"name": "modelopt"}, "quantization": {"quantized_layers": {"m": {"quant_algo": "FP8"}}}}
    found = metadata.quantization(
        {"quantization_config": {**MIXED, "ignore": ["m"]}}, sides(hf_quant_config=json.dumps(side).encode())
    )
    assert found == {**side, "quant_method": "modelopt_mixed"}
    with_layers = {**MIXED, "quantized_layers": {}}
    assert metadata.quantization({"quantization_config": with_layers}, sides(hf_quant_config=b"{}")) == with_layers


@pytest.mark.parametrize("files", [{}, {"hf_quant_config": b'{"producer": {"name": "other"}}'}])
@pytest.mark.parametrize(
    "block", [MIXED, {"quant_method": "modelopt", "quantization": {**MIXED, "quantized_layers": {}}}]
)
def test_mixed_precision_without_a_side_file_of_modelopt_has_no_layers(block, files):
    found = metadata.quantization({"quantization_config": block}, sides(**files))
    assert found == {"quant_method": "modelopt_mixed", "quant_algo": "MIXED_PRECISION"}


def test_a_block_that_is_no_object_is_refused():
    with pytest.raises(MtpforgeError) as caught:
        metadata.quantization({"quantization_config": "fp8"}, sides())
    assert caught.value.what == "`quantization_config` of config.json must be an object"
    assert caught.value.why == "it is 'fp8'"


@pytest.mark.parametrize(
    ("card", "models"),
    [
        (b"---\nbase_model: zai-org/GLM-5.2\n---\n# Hi", ("zai-org/GLM-5.2",)),
        (b"---\nbase_model:\n- a/b\n- c/d\n---\n", ("a/b", "c/d")),
        (b"---\r\nbase_model: a/b\r\n---\r\n", ("a/b",)),
        (b"---\nlicense: mit\n---\n", ()),
        (b"---\nbase_model: 7\n---\n", ()),
        (b"---\nbase_model: [a\n---\n", ()),
        (b"---\n- a\n---\n", ()),
        (b"---\nunclosed", ()),
        (b"# no front matter\nbase_model: a/b", ()),
        (b"\xff\xfe", ()),
        (b"", ()),
        (None, ()),
        (b"---\nbase_model: a/b\n---\n" + b" " * 1_000_000, ()),
    ],
)
def test_base_models_of_a_model_card(card, models):
    assert metadata.base_models(card) == models


@pytest.mark.parametrize(("path", "below"), [("a.safetensors", True), ("sub/a", True), ("./a", True), ("a/..b", True),
                                              ("../a", False), ("a/../b", False), ("/a", False), ("", False),
                                              ("a\nb", False), ("..", False), ("a\\..\\b", False)])  # fmt: skip
def test_which_paths_stay_below_the_folder(path, below):
    assert metadata.is_below(path) is below


def test_an_index_names_files():
    assert metadata.index(b'{"weight_map": {"a": "x.safetensors", "b": "y/z.safetensors"}}') == {
        "a": "x.safetensors",
        "b": "y/z.safetensors",
    }
