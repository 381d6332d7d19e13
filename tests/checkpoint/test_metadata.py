from __future__ import annotations

import pytest

from mtpforge.checkpoint import metadata
from mtpforge.errors import MtpforgeError

BLOCK = {"quant_method": "fp8"}


def sides(**files):
    return lambda name: files.get(name.removesuffix(".json"))


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
    assert metadata.quantization(config, sides(hf_quant_config=b'{"a": 1}')) == BLOCK


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization": "none"}])
@pytest.mark.parametrize("name", ["hf_quant_config", "quantize_config", "quant_config", "quantization_config"])
def test_a_side_file_counts_when_the_config_has_no_block(config, name):
    assert metadata.quantization(config, sides(**{name: b'{"bits": 4}'})) == {"bits": 4}
    assert metadata.quantization(config, sides()) == {}


def test_mixed_precision_takes_its_modules_from_the_side_file():
    block = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    side = sides(hf_quant_config=b'{"quantization": {"quantized_layers": {"m": {"quant_algo": "FP8"}}}}')
    found = metadata.quantization({"quantization_config": block}, side)
    assert found == {**block, "quantized_layers": {"m": {"quant_algo": "FP8"}}}
    assert metadata.quantization({"quantization_config": block}, sides()) == block


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
