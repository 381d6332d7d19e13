"""Which forms of a layer SGLang loads: what our rules say of each, and what its own loader says of a small layer."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from safetensors_headers import store
from sglang_asked import in_sglang, verdicts

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import Serving
from mtpforge.engines.expected import expected
from mtpforge.engines.sglang import SGLANG
from mtpforge.engines.sglang.loader.request import Request
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16, Quantization

DENSE = ("eh_proj", "mlp.gate", "self_attn.indexer.weights_proj")
WK = "self_attn.indexer.wk"
FUSED_IN = ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")
KV_B, REST = "self_attn.kv_b_proj", "self_attn.*"
SHARED, EXPERTS = "mlp.shared_experts.*", "mlp.experts.*"
INT4 = Quantization("pack_quantized", 4, strategy="group", group_size=32, scale_dtype="BF16")
INT8 = Quantization("pack_quantized", 8, strategy="channel", scale_dtype="BF16")
ASYMMETRIC = Quantization("pack_quantized", 4, strategy="group", group_size=32, symmetric=False, scale_dtype="BF16")
NVFP4 = Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3", input_scale="static")
CHANNEL = Quantization("fp8_scaled", 8, strategy="channel", scale_dtype="F32", input_scale="dynamic")
BLOCKS = Quantization("fp8_scaled", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic")
FP8 = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic")
W4AFP8 = Quantization("w4afp8", 4, strategy="group", group_size=128, scale_dtype="BF16")
MXFP8 = Quantization("mxfp8", 8, strategy="group", group_size=32, scale_dtype="U8", input_scale="dynamic")
MXFP4 = Quantization("mxfp4", 4, strategy="group", group_size=32, scale_dtype="U8")
QUARK = replace(MXFP4, format="quark_mxfp4", input_scale="dynamic")
AWQ = Quantization("awq", 4, strategy="group", group_size=128, symmetric=False, scale_dtype="F16")
GPTQ = Quantization("gptq", 4, strategy="group", group_size=128, scale_dtype="F16")
RUNNER = "--speculative-moe-runner-backend"
FLAG = "--disable-shared-experts-fusion"


@dataclass(frozen=True)
class Row:
    """A form of the layer. n_experts: 256 are fused with the shared one. refused: words of SGLang's.

    block: one by hand, where ours would state no such form. capability: of the device that is asked.
    """

    experts: Quantization = BF16
    shared: Quantization = BF16
    rest: Quantization = BF16
    fused_in: Quantization = BF16
    kv_b: Quantization = BF16
    wk: Quantization = BF16
    n_experts: int = 16
    refused: str = ""
    block: dict | None = None
    capability: int = 90

    @property
    def scheme(self):
        named = {EXPERTS: self.experts, SHARED: self.shared, KV_B: self.kv_b, WK: self.wk, REST: self.rest}
        named = dict.fromkeys(DENSE, BF16) | dict.fromkeys(FUSED_IN, self.fused_in) | named
        return Scheme("given", tuple(Rule(pattern, q, "") for pattern, q in named.items()))


def fp8(q, **more):
    return Row(**{"experts": q, "shared": q, "rest": q, "fused_in": q, "kv_b": q, **more})


def awq(q, **more):
    return Row(**{"experts": q, "shared": q, "rest": q, "fused_in": q, **more})


def gptq(q, **more):
    return Row(**{"experts": q, "shared": q, "rest": q, **more})


# A rule that SGLang does not ask for the experts.
BUT_EXPERTS = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False,
               "dynamic": {"-:.*self_attn.*": {}, "-:.*mlp[.]experts.*": {}}}  # fmt: skip


def compressed(form, bits):
    """compressed-tensors' block of a microscaled form for all linears but the attention and the shared experts."""
    weights = {"num_bits": bits, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True,
               "dynamic": False, "scale_dtype": "torch.uint8"}  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None, "format": form}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups,
            "quantization_status": "compressed", "ignore": ["re:.*self_attn.*", "re:.*shared_experts.*"]}  # fmt: skip


def quark(inputs):
    """Quark's, of MXFP4, whose activations are quantized or not."""
    mxfp4 = {"dtype": "fp4", "qscheme": "per_group", "ch_axis": -1, "group_size": 32, "scale_format": "e8m0"}
    every = {"weight": mxfp4 | {"is_dynamic": False}, "output_tensors": None, "bias": None,
             "input_tensors": mxfp4 | {"is_dynamic": True} if inputs else None}  # fmt: skip
    return {"quant_method": "quark", "export": {"kv_cache_group": [], "pack_method": "reorder"},
            "global_quant_config": every, "layer_quant_config": {}, "layer_type_quant_config": {},
            "exclude": ["re:.*self_attn.*", "re:.*shared_experts.*", "re:.*eh_proj", "re:.*mlp.gate$"]}  # fmt: skip


ROWS = {
    "dense": Row(),
    "dense, 256 experts": Row(n_experts=256),
    "FP8 of DeepSeek": fp8(FP8),
    "FP8 of DeepSeek, 256 experts": fp8(FP8, n_experts=256),
    "FP8 in blocks": fp8(BLOCKS),
    "FP8 by channel": fp8(CHANNEL),
    "FP8 experts alone, 256": Row(experts=FP8, n_experts=256),
    "INT4": Row(experts=INT4),
    "INT4, 256 experts": Row(experts=INT4, n_experts=256),
    "INT4 shared too": Row(experts=INT4, shared=INT4, rest=INT4),
    "INT8": Row(experts=INT8, shared=INT8),
    "INT8, 256 experts": Row(experts=INT8, shared=INT8, n_experts=256),
    "INT8 experts alone, 256": Row(experts=INT8, n_experts=256),
    "NVFP4 experts alone, 256": Row(experts=NVFP4, n_experts=256),
    "NVFP4 shared too": Row(experts=NVFP4, shared=NVFP4, rest=NVFP4, n_experts=256),
    "INT4 beside FP8": Row(experts=INT4, shared=CHANNEL, rest=CHANNEL, fused_in=CHANNEL, kv_b=CHANNEL),
    "W4AFP8": fp8(FP8, experts=W4AFP8),
    "W4AFP8, 256 experts": fp8(FP8, experts=W4AFP8, n_experts=256),
    "FP8 blocks of experts and shared": Row(experts=BLOCKS, shared=BLOCKS),
    "INT4 beside FP8 blocks of matrices alone": Row(experts=INT4, rest=BLOCKS, fused_in=BLOCKS),
    "INT4 beside FP8 blocks of merged matrices": Row(experts=INT4, shared=BLOCKS, refused="is not subscriptable"),
    "INT4 beside FP8 blocks of kv_b": Row(experts=INT4, kv_b=BLOCKS, refused="Attempting to broadcast a dimension"),
    "MXFP8": fp8(MXFP8, capability=100),
    "MXFP8, 256 experts": fp8(MXFP8, n_experts=256, capability=100),
    "MXFP8 experts alone, 256": Row(experts=MXFP8, n_experts=256, capability=100),
    "MXFP8 but for the joined and kv_b": Row(experts=MXFP8, shared=MXFP8, rest=MXFP8, capability=120),
    "MXFP8 in compressed-tensors' words": fp8(
        MXFP8,
        block=compressed("mxfp8-quantized", 8) | {"ignore": []},
        capability=100,
        refused="No compressed-tensors compatible scheme was found",
    ),
    "MXFP4": Row(experts=MXFP4, block=compressed("mxfp4-pack-quantized", 4), refused="w13_weight [16, 256, 64]"),
    "MXFP4 shared too": Row(
        experts=MXFP4,
        shared=MXFP4,
        block=compressed("mxfp4-pack-quantized", 4) | {"ignore": ["re:.*self_attn.*"]},
        refused="No compressed-tensors compatible scheme was found",
    ),
    "MXFP4 of Quark": Row(
        experts=QUARK, block=quark(inputs=True), capability=100, refused="currently requires the AITER runner"
    ),
    "MXFP4 of Quark, weights alone": Row(
        experts=replace(QUARK, input_scale="none"),
        block=quark(inputs=False),
        refused="Unsupported FusedMoe scheme",
    ),
    "AWQ": awq(AWQ),
    "AWQ, 256 experts": awq(AWQ, n_experts=256),
    "AWQ in groups of 32, on Blackwell": awq(replace(AWQ, group_size=32), capability=100),
    "AWQ but for the experts": awq(AWQ, experts=BF16),
    "AWQ in groups of 16": awq(
        replace(AWQ, group_size=16), refused="torch.bfloat16 is not supported for quantization method awq"
    ),
    "AWQ beside dense q_a and kv_a": awq(AWQ, fused_in=BF16, refused="Sizes of tensors must match"),
    "AWQ kv_b": awq(AWQ, kv_b=AWQ, refused="No module named 'sglang.kernel_api_logging'"),
    "GPTQ": gptq(GPTQ),
    "GPTQ, 256 experts": gptq(GPTQ, n_experts=256),
    "GPTQ on Blackwell": gptq(GPTQ, capability=100),
    "GPTQ experts alone, 256": Row(experts=GPTQ, n_experts=256),
    "GPTQ of 8 bits by channel": gptq(replace(GPTQ, bits=8, strategy="channel", group_size=None)),
    "GPTQ of 4 and 8 bits": gptq(GPTQ, shared=replace(GPTQ, bits=8)),
    "GPTQ v2": gptq(replace(GPTQ, format="gptq_v2")),
    "GPTQ of 3 bits": gptq(replace(GPTQ, bits=3), refused="Unknown quantization method: gptq"),
    "GPTQ but for the experts": Row(shared=GPTQ, block=BUT_EXPERTS, refused="w13_qweight [16,"),
    "GPTQ q_a and kv_a": gptq(GPTQ, fused_in=GPTQ, refused="Sizes of tensors must match"),
    "GPTQ kv_b": gptq(GPTQ, kv_b=GPTQ, refused="No module named 'sglang.kernel_api_logging'"),
    "zero points": Row(experts=ASYMMETRIC, refused="gate_proj.weight_zero_point"),
    "INT3": Row(experts=replace(INT4, bits=3), refused="is supported for the following bits"),
    "packed kv_b": Row(experts=INT4, kv_b=INT4, refused="has no attribute 'weight'"),
    "packed q_a and kv_a": Row(experts=INT4, fused_in=INT4, refused="AssertionError"),
    "NVFP4 q_a and kv_a": Row(experts=NVFP4, fused_in=NVFP4, refused="AssertionError"),
}
# On Hopper.
ELSEWHERE = {"MXFP8": "Minimum capability: 100"}
# What the flag is for: without it these lose their shared experts, or cast them.
UNFLAGGED = {
    "INT8 experts alone, 256": "w13_weight_packed",
    "NVFP4 experts alone, 256": "w13_weight_packed",
    "GPTQ experts alone, 256": "w13_qweight",
    "FP8 experts alone, 256": "is bfloat16, model.decoder.mlp.experts.w13_weight is float8_e4m3fn",
}


FAMILIES = ("glm-4.5", "glm-4.5-air", "glm-4.7-flash", "deepseek-v3", "deepseek-v3.2")
OF_ALL = {
    "dense": Row(n_experts=8),
    "FP8": fp8(FP8, n_experts=8),
    "INT4 experts": Row(experts=INT4, n_experts=8),
    "INT8 experts": Row(experts=INT8, n_experts=8),
    "W4AFP8": fp8(FP8, experts=W4AFP8, n_experts=8),
    # Of a kv_b of published size SGLang reads hundreds of thousands of blocks one by one.
    "MXFP8": fp8(MXFP8, n_experts=8, capability=100, kv_b=BF16),
    "AWQ": awq(AWQ, n_experts=8),
    "GPTQ": gptq(GPTQ, n_experts=8),
}


def of_family(name, row, wk_is_dense):
    """A form as the family's class loads it: GLM-4.7-Flash's joins dense q_a and kv_a beside AWQ, the others AWQ's."""
    dense_in = replace(row, fused_in=BF16) if (name, row.fused_in) == ("glm-4.7-flash", AWQ) else row
    return dense_in if wk_is_dense else replace(dense_in, wk=row.rest)


@pytest.fixture
def target(tinyglm):
    return open_checkpoint(str(tinyglm("bf16")))


@pytest.fixture
def releases(release_config, tmp_path):
    """Other families' published configs, unquantized."""

    def write(name):
        config = release_config(f"target-{name}")
        config.pop("quantization_config", None)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "n_routed_experts": 8}))
        return open_checkpoint(str(folder))

    return {name: write(name) for name in FAMILIES}


def drafted(target, row):
    family = family_of(target.config)
    wanted = row.scheme if row.block is None else Row().scheme
    config = SGLANG.draft_config(target, target.config, family, wanted, row.n_experts)
    return config if row.block is None else config | {"quantization_config": row.block}


def folder_of(target, row, home):
    """Headers of a draft in a form, and its config."""
    config, family = drafted(target, row), family_of(target.config)
    specs = expected(row.scheme, family, config, family.layer(config), row.n_experts)
    home.mkdir()
    (home / "config.json").write_text(json.dumps(config))
    store(home / "model.safetensors", specs)
    return home


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_rules_say_what_the_loader_says(target, row):
    family = family_of(target.config)
    try:
        found = SGLANG.demands(target, drafted(target, row), family)
    except MtpforgeError:
        assert row.refused
        return
    modules = family.modules(target.config, 1)
    is_as_stored = all(found.of(m.template).quantization == row.scheme.of(m.template).quantization for m in modules)
    assert is_as_stored is not bool(row.refused)


@pytest.mark.engine
@in_sglang
def test_loader_says_what_the_rules_say(target, releases, tmp_path):
    cases = {name: (target, row) for name, row in ROWS.items()}
    for name, held in releases.items():
        is_dense = WK in SGLANG.never_quantized(family_of(held.config))
        cases |= {f"{name}, {kind}": (held, of_family(name, row, is_dense)) for kind, row in OF_ALL.items()}
    requests = {}
    for number, (name, (served, row)) in enumerate(cases.items()):
        draft = str(folder_of(served, row, tmp_path / str(number)))
        command = SGLANG.serve(served, draft, Serving(), row.scheme)
        flags = [word for flag in command.flags if flag.name in (FLAG, RUNNER) for word in flag.words]
        requests[name] = Request(served.location, draft, arguments=flags, same_config=False, capability=row.capability)
        if name in ELSEWHERE:
            requests[f"{name}, on Hopper"] = replace(requests[name], capability=90)
        if name in UNFLAGGED:
            requests[f"{name}, no flag"] = replace(requests[name], arguments=[w for w in flags if w != FLAG])
    found = verdicts(requests)
    words = {name: row.refused for name, (_, row) in cases.items()}
    words |= {f"{n}, no flag": w for n, w in UNFLAGGED.items()} | {f"{n}, on Hopper": w for n, w in ELSEWHERE.items()}
    wrong = {}
    for name, wanted in words.items():
        said = found[name].get("errors", [found[name].get("error")])
        if bool(said) != bool(wanted) or (wanted and not any(wanted in text for text in said)):
            wrong[name] = said[:3]
    assert wrong == {}
