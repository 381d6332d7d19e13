"""Merges beside AWQ and GPTQ without lists: vLLM makes those of headers, and the headers of a merge are others."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from grafted import LAYER, digests, of_layer, tensors
from safetensors.torch import load_file, save_file
from slow_twins import packers

import mtpforge
from mtpforge.engines.vllm import installed
from mtpforge.errors import MtpforgeError

INDEX = "model.safetensors.index.json"
PACKED = (".self_attn.o_proj.weight", ".mlp.shared_experts.down_proj.weight")
BLOCKS = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True,
             "dynamic": {"-:.*[.]mlp[.]experts$": {}}},
}  # fmt: skip


def is_packed(method, name):
    """AWQ's experts too: no list that vLLM makes of headers leaves them dense."""
    is_expert = ".mlp.experts." in name and name.endswith("_proj.weight")
    return name.endswith(PACKED) or (method == "awq" and is_expert)


def packed(method, weight):
    if method == "awq":
        return packers.awq(weight, 32)[0]
    return packers.gptq(weight, 4, 32, symmetric=True)[0]


@pytest.fixture(scope="module")
def quantized(tinyglm, tmp_path_factory):
    """The tiny model of which some linears of every layer are packed, by a block that lists nothing."""
    made = {}

    def make(method):
        if method not in made:
            out = tmp_path_factory.mktemp(method) / "base"
            shutil.copytree(tinyglm("bf16"), out)
            index = {}
            for path in out.glob("*.safetensors"):
                held = load_file(path)
                for name in [name for name in held if is_packed(method, name)]:
                    parts = packed(method, held.pop(name).float())
                    stem = name.removesuffix("weight")
                    held |= {stem + suffix: part.contiguous() for suffix, part in parts.items()}
                save_file(held, path, metadata={"format": "pt"})
                index |= dict.fromkeys(held, path.name)
            (out / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
            config = json.loads((out / "config.json").read_text()) | {"quantization_config": BLOCKS[method]}
            (out / "config.json").write_text(json.dumps(config))
            made[method] = out
        return made[method]

    return make


@pytest.fixture(scope="module")
def merged(quantized, tinyglm, tmp_path_factory):
    """The same with the MTP layer of the unquantized model."""
    made = {}

    def make(method):
        if method not in made:
            out = tmp_path_factory.mktemp(method) / "merged"
            takes = {f"{LAYER}*": tinyglm("bf16")}
            made[method] = mtpforge.merge(quantized(method), takes, out=out, link="sym")
        return made[method]

    return make


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_the_merged_block_says_itself_what_is_dense(merged, tinyglm, quantized, method):
    made = merged(method)
    assert made.report.ok
    assert of_layer(digests(tensors(made.path))) == of_layer(digests(tensors(tinyglm("bf16"))))
    block = json.loads((made.path / "config.json").read_text())["quantization_config"]
    o_proj = [f"model.layers.{layer}.self_attn.o_proj" for layer in range(4)]
    if method == "awq":  # entries are looked for in names
        listed = block["modules_to_not_convert"]
        assert [any(entry in name for entry in listed) for name in o_proj] == [False, False, False, True]
    else:
        assert [f"-:{name.replace('.', '[.]')}$" in block["dynamic"] or f"-:{name}$".replace(".", "\\.") in
                block["dynamic"] for name in o_proj] == [False, False, False, True]  # fmt: skip


def test_a_merge_of_one_checkpoint_stays_what_it_was(quantized, tmp_path):
    base = quantized("awq")
    made = mtpforge.merge(base, {"lm_head": base}, out=tmp_path / "merged", link="sym")
    assert digests(tensors(made.path)) == digests(tensors(base))


@pytest.mark.parametrize("method", ["torchao", "somebody-s-own"])
def test_method_whose_rules_are_not_known_is_refused_by_name(tinyglm, tmp_path, method):
    base = tmp_path / "base"
    shutil.copytree(tinyglm("bf16"), base)
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(MtpforgeError) as caught:
        mtpforge.merge(base, {f"{LAYER}*": tinyglm("bf16")}, out=tmp_path / "merged")
    assert caught.value.what == f"how vLLM builds modules of method `{method}` is not known here"
    assert caught.value.place == str(base)
    assert caught.value.fix == "merge checkpoints of these methods, or unquantized ones"


@pytest.mark.engine
@pytest.mark.skipif(not os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON"), reason="no interpreter with vLLM is named")
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_vllm_takes_it_as_its_own_target_and_draft(merged, quantized, tmp_path, method):
    python = os.environ["MTPFORGE_TEST_ENGINE_PYTHON"]
    made = merged(method)
    report = installed.check(made.path, made.path, python=python)
    assert report.ok, report.facts["errors"]
    other = shutil.copytree(made.path, tmp_path / "other", symlinks=True)
    without = json.loads((quantized(method) / "config.json").read_text())
    without["quantization_config"]["modules_to_not_convert"] = ["lm_head"]
    without["quantization_config"]["modules_in_block_to_quantize"] = ["model."]
    (other / "config.json").write_text(json.dumps(without))
    refused = installed.check(other, other, python=python)
    assert not refused.ok  # a list that speaks of nothing leaves the layer quantized
