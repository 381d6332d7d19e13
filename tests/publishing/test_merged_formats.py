"""festr2's form: experts NVFP4, attention and shared experts INT8, an MTP layer of INT8 by channel; module by module.

What each module is said to be is read by compressed-tensors' own classes, what it holds by safetensors alone.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import match_name
from grafted import check_index, digests, tensors
from respelled import nvfp4_of_compressed_tensors

import mtpforge
from mtpforge.engines.vllm import installed
from mtpforge.publishing import making_merges, merging
from mtpforge.publishing.judging_merges import judge
from mtpforge.publishing.merging import Asked

EXPERTS, LAYER = "model.layers.*.mlp.experts.*", "model.layers.3.*"
PACKED = {"weight_packed": "I32", "weight_scale": "BF16", "weight_shape": "I64"}
# What the merged config says of a module -> dtype of each of its tensors
STORED = {
    ("nvfp4-pack-quantized", 4, "tensor_group", 16): {
        "weight_packed": "U8",
        "weight_scale": "F8_E4M3",
        "weight_global_scale": "F32",
        "input_global_scale": "F32",
    },
    ("pack-quantized", 8, "group", 128): PACKED,
    ("pack-quantized", 8, "channel", None): PACKED,
}


@pytest.fixture(scope="module")
def experts(tinyglm, tmp_path_factory):
    return nvfp4_of_compressed_tensors(tinyglm("nvfp4"), tmp_path_factory.mktemp("experts") / "nvfp4-ct")


@pytest.fixture(scope="module")
def merged(tinyglm, experts, tmp_path_factory):
    base = tinyglm("int4-int8mix")
    out = tmp_path_factory.mktemp("merged") / "merged"
    return mtpforge.merge(base, {LAYER: base, EXPERTS: experts}, out=out, link="sym")


def modules(folder):
    """Module -> dtype of each of its tensors."""
    found = {}
    for name, (_, dtype, _, _) in tensors(folder).items():
        module, _, suffix = name.rpartition(".")
        found.setdefault(module, {})[suffix] = dtype
    return found


def said_of(block, module):
    """How compressed-tensors would build a module of this name, None for dense."""
    if any(match_name(module, entry) for entry in block.ignore):
        return None
    for group in block.config_groups.values():
        if any(match_name(module, target) for target in group.targets):
            weights = group.weights
            size = weights.group_size if weights.group_size != -1 else None
            return group.format, weights.num_bits, str(weights.strategy), size
    return None


def test_every_module_is_stored_as_compressed_tensors_reads_the_merged_config(merged):
    assert merged.report.ok
    block = json.loads((merged.path / "config.json").read_text())["quantization_config"]
    known, held, kinds = QuantizationConfig.model_validate(block), modules(merged.path), {}
    for module, parts in held.items():
        said = said_of(known, module)
        assert ("weight_packed" in parts) == (said is not None), module
        if said is not None:
            assert parts == STORED[said], module
            kinds.setdefault(said, []).append(module)
    counted = {said: len(names) for said, names in kinds.items()}
    assert counted == {
        ("nvfp4-pack-quantized", 4, "tensor_group", 16): 2 * 16 * 3,
        ("pack-quantized", 8, "group", 128): 2 * 8,
        ("pack-quantized", 8, "channel", None): 16 * 3 + 8,
    }


def test_bytes_are_those_of_the_checkpoint_that_gives_them(merged, experts, tinyglm):
    base, other = digests(tensors(tinyglm("int4-int8mix"))), digests(tensors(experts))
    for name, row in digests(tensors(merged.path)).items():
        is_taken = ".mlp.experts." in name and not name.startswith("model.layers.3.")
        assert row == (other if is_taken else base)[name], name
    check_index(merged.path)


def test_tensor_that_is_not_the_one_of_its_side_is_found(tinyglm, experts, tmp_path):
    """The judge alone, after the fact: one byte of what was copied, then a merge that says it took another's."""
    base = tinyglm("int4-int8mix")
    asked = Asked(base=base, takes=((LAYER, base), (EXPERTS, experts)), out=tmp_path / "merged", link="copy")
    merge = merging.decide(asked)
    made = making_merges.make(merge)
    values = {check.name: check for check in made.report.checks}["values"]
    n = len(tensors(made.path))
    assert (values.verdict, values.detail) == (
        "passed",
        f"0 tensors in shared files, {n} read beside where they come from",
    )
    module = "model.layers.1.mlp.experts.0.up_proj"
    name = f"{module}.weight_scale"
    path = made.path / tensors(made.path)[name][0]
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start + json.loads(raw[8:start])[name]["data_offsets"][0]] ^= 1
    path.write_bytes(raw)
    assert _failed(merge, made.path) == f"`{module}.weight_scale` holds other bytes than the one of {experts}"
    other = dict.fromkeys(merge.origins, 0)
    assert "by the merged config than by its own" in _failed(replace(merge, origins=merge.origins | other), made.path)


def _failed(merge, folder):
    report = judge(merge, folder)
    assert not report.ok
    return next(check.detail for check in report.checks if check.verdict == "failed")


@pytest.mark.engine
@pytest.mark.skipif(not os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON"), reason="no interpreter with vLLM is named")
def test_vllm_takes_it_as_its_own_target_and_draft(merged):
    report = installed.check(merged.path, merged.path, python=os.environ["MTPFORGE_TEST_ENGINE_PYTHON"])
    assert report.ok, report.facts["errors"]
