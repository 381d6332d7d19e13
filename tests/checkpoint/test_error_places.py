"""Errors about a file say in which checkpoint it lies: source and target have files of the same names."""

from __future__ import annotations

import json
import shutil

import pytest

from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.error_places import errors_by_origin, errors_of
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError, Where
from mtpforge.families import family_of
from mtpforge.inspecting import inspect
from mtpforge.sourcing import stored_layer
from mtpforge.tensors import Spec, TensorRef
from mtpforge.verifying import verify

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture
def copy(tinyglm, tmp_path):
    return shutil.copytree(tinyglm("bf16"), tmp_path / "copy")


def reconfigure(folder, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def where(act) -> str:
    with pytest.raises(MtpforgeError) as refused:
        act()
    return refused.value.where


def a_shard(folder):
    return max(folder.glob("*.safetensors"))


def test_config_that_is_no_json(copy):
    (copy / "config.json").write_text("{")
    assert where(lambda: open_checkpoint(str(copy))) == f"{copy}/config.json"


def test_index_that_is_no_json(copy):
    (copy / "model.safetensors.index.json").write_text("{")
    assert where(lambda: open_checkpoint(str(copy)).names) == f"{copy}/model.safetensors.index.json"


def test_shard_with_a_damaged_header(copy):
    shard = a_shard(copy)
    shard.write_bytes(b"\xff" * 64)
    source = open_checkpoint(str(copy))
    assert where(lambda: stored_layer(source, family_of(source.config))) == str(shard)
    assert where(lambda: open_checkpoint(str(copy)).locate(["model.layers.3.enorm.weight"])) == str(shard)
    assert where(lambda: open_checkpoint(str(copy)).strays("model.layers.3.")) == str(shard)


def test_config_without_a_size_of_the_layer(copy):
    reconfigure(copy, lambda config: config.pop("kv_lora_rank"))
    source = open_checkpoint(str(copy))
    assert where(lambda: stored_layer(source, family_of(source.config))) == f"{copy}/config.json, `kv_lora_rank`"


def test_model_of_another_type(copy):
    reconfigure(copy, lambda config: config.update(model_type="llama"))
    target = open_checkpoint(str(copy))
    assert where(lambda: inspect(target)) == f"{copy}/config.json, `model_type`"
    assert where(lambda: verify(copy, target)) == f"{copy}/config.json, `model_type`"


def test_quantization_that_the_engine_refuses(copy):
    reconfigure(copy, lambda config: config.update(quantization_config={"quant_method": "fancy"}))
    target = open_checkpoint(str(copy))
    found = where(lambda: ENGINES["vllm"].demands(target, None, family_of(target.config)))
    assert found.startswith(f"{copy}/config.json, quantization_config")


class Hub:
    label, location, revision = "org/name@main", "org/name", "0" * 40


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (Where("config.json", inside="`x`"), "org/name@main, config.json, `x`"),
        (Where("config.json"), "org/name@main, config.json"),
        (Where("model.safetensors", "a b"), "org/name@main, model.safetensors, tensor a b"),
        (Where("config.json", inside="`x`", checkpoint="/there/"), "/there/config.json, `x`"),
        ("config.json, `x`", "config.json, `x`"),  # of what is written as text nothing is guessed
        ("option `--tp`", "option `--tp`"),
        ("", ""),
    ],
)
def test_a_file_of_no_known_checkpoint_gets_one(told, expected):
    def act() -> None:
        with errors_of(Hub()):
            raise MtpforgeError("what", where=told)

    assert where(act) == expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [("target", "org/name@main, x.safetensors, tensor t"), ("scales", "x.safetensors, tensor t")],
)
def test_of_several_checkpoints_it_is_the_one_of_the_tensor(origin, expected):
    ref = TensorRef("t", Spec("F32", (1,)), "x.safetensors", 0, 4, origin)

    def act() -> None:
        with errors_by_origin({"target": Hub()}):
            raise MtpforgeError("what", where=ref.place)

    assert where(act) == expected


def test_it_is_said_once(copy):
    (copy / "config.json").write_text("{")

    def act() -> None:
        with errors_of(Hub()):
            open_checkpoint(str(copy))

    assert where(act) == f"{copy}/config.json"


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "shard"])
def test_git_lfs_pointer_is_named_as_one(copy, name):
    file = a_shard(copy) if name == "shard" else copy / name
    file.write_bytes(POINTER)
    source = open_checkpoint(str(copy))
    with pytest.raises(MtpforgeError) as refused:
        stored_layer(source, family_of(source.config))
    assert refused.value.what == f"`{file.name}` is a Git LFS pointer, not the file itself"
    assert refused.value.where == str(file)
    assert "`git lfs pull`" in refused.value.fix
