"""vLLM's own parser, matching and loader on what we say about it: `make test-engines` names its interpreter."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from mtpforge.engines import ENGINES
from mtpforge.engines.expected import expected
from mtpforge.engines.vllm import installed
from mtpforge.families import family_of

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM"),
]
ROOT = Path(__file__).parents[2]
VLLM = ENGINES["vllm"]
P = "model.layers.3."

RELEASES = [
    "target-awq-int4-ignore-to-77",
    "target-awq-int4-mtp-ignored",
    "target-bf16",
    "target-fp8",
    "target-int4-int8mix-quanttrio",
    "target-int8mix-nvfp4-festr2",
    "target-mxfp4-amd",
    "target-nvfp4-lorbus",
    "target-nvfp4-lukealonso",
    "target-nvfp4-nvidia",
    "target-w4a16-mtp-canada-quant",
]


def compressed(stored_as, weights, activations=None, ignore=(), targets=("Linear",)):
    group = {"targets": list(targets), "weights": weights, "input_activations": activations}
    block = {"quant_method": "compressed-tensors", "format": stored_as, "ignore": list(ignore)}
    return block | {"config_groups": {"group_0": group}}


def kind(bits, number, strategy, **more):
    return {"num_bits": bits, "type": number, "strategy": strategy, "symmetric": True, "dynamic": False} | more


FP4 = kind(4, "float", "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn")
BLOCKS = {"block_structure": [128, 128]}
MIXED = {
    "linears": {"targets": ["re:.*self_attn.*"], "format": "float-quantized", "weights": kind(8, "float", "channel")}
    | {"input_activations": kind(8, "float", "token", dynamic=True)},
    "rest": {"targets": ["re:.*mlp.*"], "format": "pack-quantized", "weights": kind(4, "int", "group", group_size=32)},
}
BLOCKS_OF_TARGETS = {
    "fp8 tensor static": compressed("float-quantized", kind(8, "float", "tensor"), kind(8, "float", "tensor")),
    "fp8 channel": compressed("float-quantized", kind(8, "float", "channel"), kind(8, "float", "token", dynamic=True)),
    "fp8 block": compressed(
        "float-quantized",
        kind(8, "float", "block", **BLOCKS),
        kind(8, "float", "group", group_size=128, dynamic=True),
    ),
    "fp8 weights only": compressed("float-quantized", kind(8, "float", "channel"), ignore=["re:.*mlp[.]experts.*"]),
    "int8": compressed("int-quantized", kind(8, "int", "channel"), kind(8, "int", "token", dynamic=True)),
    "int8 g128": compressed("pack-quantized", kind(8, "int", "group", group_size=128)),
    "int4 channel": compressed("pack-quantized", kind(4, "int", "channel")),
    "nvfp4": compressed("nvfp4-pack-quantized", FP4, FP4 | {"dynamic": "local"}),
    "nvfp4 weights only": compressed("nvfp4-pack-quantized", FP4),
    "mixed": {"quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["re:.*indexer.*"]}
    | {"config_groups": MIXED},
    "modelopt fp8": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": [f"{P}self_attn.indexer*"]},
    "modelopt nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["*head*"], "group_size": 16},
    "modelopt mixed": {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "ignore": ["lm_head"],
        "quantized_layers": {
            f"{P}self_attn.q_a_proj": {"quant_algo": "FP8"},
            f"{P}self_attn.kv_a_proj_with_mqa": {"quant_algo": "FP8"},
            f"{P}self_attn.o_proj": {"quant_algo": "FP8"},
            f"{P}mlp.experts.0.gate_proj": {"quant_algo": "NVFP4", "group_size": 16},
            f"{P}mlp.shared_experts.down_proj": {"quant_algo": "NVFP4", "group_size": 16},
        },
    },
    "fp8 per tensor": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "fp8 static, experts dense": {
        "quant_method": "fp8",
        "activation_scheme": "static",
        "ignored_layers": [f"{P}mlp.experts"],
    },
    "fp8 blocks, some dense": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": [f"{P}mlp.shared_experts.down_proj.weight", f"{P}self_attn.fused_qkv_a_proj"],
    },
}


@pytest.fixture
def answer(target_of, tmp_path):
    """vLLM's verdict on a draft of headers alone that holds exactly what we expect beside a target."""

    def ask(config):
        target = target_of(config)
        family = family_of(config)
        scheme, n_experts = VLLM.demands(target, None, family), family.n_experts(config)
        draft = VLLM.draft_config(target, config, family, scheme, n_experts)
        specs = expected(scheme, family, draft, family.layer(config), n_experts)
        header, end = {}, 0
        for name, spec in specs.items():
            offsets = [end, end := end + spec.n_bytes]
            header[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": offsets}
        raw = json.dumps(header).encode()
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            file.truncate(8 + len(raw) + end)  # sparse: only headers are read
        (tmp_path / "config.json").write_text(json.dumps(draft))
        report = installed.check(tmp_path, config, python=PYTHON)
        assert report.facts["tensors"] == len(specs)
        return report

    return ask


@pytest.mark.parametrize("name", RELEASES)
def test_expected_tensors_beside_a_release_are_those_that_vllm_builds(name, release_config, answer):
    config = {k: v for k, v in release_config(name).items() if k != "num_experts"}
    report = answer(config | {"n_routed_experts": 4, "num_experts_per_tok": 4})
    assert report.ok, report.facts["errors"]


@pytest.mark.parametrize("name", BLOCKS_OF_TARGETS)
def test_expected_tensors_of_a_method_are_those_that_vllm_builds(name, tinyglm, answer):
    config = json.loads((tinyglm("bf16") / "config.json").read_text())
    report = answer(config | {"quantization_config": BLOCKS_OF_TARGETS[name]})
    assert report.ok, report.facts["errors"]


def test_our_matching_of_names_is_vllms(release_config):
    done = subprocess.run(
        [PYTHON, str(Path(__file__).with_name("vllm_matching.py"))],
        input=json.dumps(release_config("target-bf16")),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.index('{"counts"') :])
    assert found["different"] == 0, found["first"]
    # Every rule met lists that answer yes, no and, where there are fused matrices, both.
    rules = ("compressed-tensors ignore", "fp8", "modelopt", "quark")
    assert all(found["counts"][f"{rule}: {said}"] > 100 for rule in rules for said in (True, False, "refused"))
