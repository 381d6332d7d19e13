"""What every checkpoint keeps to, whatever it is made of: folders and repositories, safetensors and GGUF."""

import pytest
from faults.hub_server import serving
from gguf_files import Type, convert

from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError

REPO = "org/tiny-GLM"
KINDS = ("folder", "repository", "GGUF in a folder", "GGUF in a repository")
LAYER = "model.layers.3."


@pytest.fixture(scope="module")
def converted(tinyglm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    convert(tinyglm("bf16"), folder / "tiny.gguf", {"_exps": Type.Q4_0, "": Type.Q8_0}, parts=2)
    (folder / "LICENSE").write_text("do as you like")
    return folder


@pytest.fixture(params=KINDS)
def opened(request, tinyglm, converted, tmp_path, monkeypatch):
    folder = converted if "GGUF" in request.param else tinyglm("bf16")
    if "folder" in request.param:
        yield open_checkpoint(str(folder))
        return
    with serving(tmp_path, monkeypatch) as hub:
        hub.add(REPO, folder)
        yield open_checkpoint(REPO)


def layer_of(checkpoint):
    return checkpoint.locate(name for name in checkpoint.names if name.startswith(LAYER))


def test_it_has_everything_that_a_checkpoint_offers(opened):
    for name in (name for name in dir(Checkpoint) if not name.startswith("_")):
        assert hasattr(opened, name), name


def test_what_it_names_it_locates_within_files_that_it_reads(opened):
    refs = opened.locate(opened.names)
    assert refs.keys() == opened.names
    assert all(ref.name == name and ref.origin == "source" for name, ref in refs.items())
    assert all(ref.stop - ref.start == ref.spec.n_bytes for ref in refs.values())
    assert opened.has_headers
    assert opened.unread == ""
    assert opened.strays(LAYER) == ()


def test_bytes_are_there_once_they_are_fetched_and_fill_the_buffer_exactly(opened):
    refs = layer_of(opened)
    opened.fetch(refs.values())
    assert opened.missing_bytes(refs.values()) == 0
    for ref in list(refs.values())[:20]:
        whole, rows = bytearray(ref.stop - ref.start), bytearray()
        opened.read(ref, memoryview(whole))
        held = opened.local_file(ref.file).read_bytes()[ref.start : ref.stop]
        assert bytes(whole) == held
        for row in range(ref.spec.shape[0]):
            part = ref.rows(row, row + 1)
            rows += bytearray(part.stop - part.start)
            opened.read(part, memoryview(rows)[len(rows) - (part.stop - part.start) :])
        assert rows == whole
        with pytest.raises(ValueError, match="a buffer of"):
            opened.read(ref, memoryview(bytearray(ref.stop - ref.start + 1)))


def test_a_name_that_is_not_there_is_an_error_with_the_name(opened):
    with pytest.raises(MtpforgeError) as caught:
        opened.locate([f"{LAYER}nothing.weight"])
    assert f"{LAYER}nothing.weight" in caught.value.what


def test_a_restated_one_has_the_same_tensors_under_another_block(opened):
    told = opened.restated({"quant_method": "fp8"})
    assert (told.is_restated, opened.is_restated) == (True, False)
    assert told.quantization == told.config["quantization_config"] == {"quant_method": "fp8"}
    assert opened.quantization != told.quantization
    assert told.locate(told.names) == opened.locate(opened.names)
    assert told.identity == opened.identity


def test_small_files_are_read_whole_and_others_are_none(opened):
    assert opened.small_file("nothing.json") is None
    assert opened.base_models() == ()
    assert {name: len(raw) for name, raw in opened.documents().items()} in ({}, {"LICENSE": 14})


def test_sizes_of_the_layer_are_the_same_whatever_they_are_read_from(opened):
    from mtpforge.families import family_of

    family = family_of(opened.config)
    assert family.layer(opened.config) == 3
    sizes = family.dimensions(opened.config)
    assert sizes == {
        "hidden_size": 128, "q_lora_rank": 128, "kv_lora_rank": 128, "qk_rope_head_dim": 32, "num_attention_heads": 4,
        "qk_nope_head_dim": 32, "v_head_dim": 32, "index_n_heads": 4, "index_head_dim": 64, "n_shared_experts": 1,
        "moe_intermediate_size": 128, "vocab_size": 512,
    }  # fmt: skip
