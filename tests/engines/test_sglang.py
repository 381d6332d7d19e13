"""SGLang's record. Verdicts are those of SGLang 0.5.23's own loader, run on a CPU on drafts of these kinds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines import ENGINES, Serving, engine_of, overlay
from mtpforge.engines.sglang import SGLANG
from mtpforge.engines.sglang.draft_classes import draft_class
from mtpforge.engines.sglang.serving import least_capability
from mtpforge.errors import MtpforgeError
from mtpforge.families import families, family_of
from mtpforge.scheme import Rule, Scheme, load
from mtpforge.tensors import BF16, Quantization, Spec

DENSE = ("eh_proj", "mlp.gate", "self_attn.indexer.wk", "self_attn.indexer.weights_proj")
NOT_PACKED = ("self_attn.kv_b_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")
SHARED, ATTENTION = "mlp.shared_experts.*", "self_attn.*"
INT4 = Quantization("pack_quantized", 4, strategy="group", group_size=32, scale_dtype="BF16")
INT8 = Quantization("pack_quantized", 8, strategy="channel", scale_dtype="BF16")
ASYMMETRIC = Quantization("pack_quantized", 4, strategy="group", group_size=32, symmetric=False, scale_dtype="BF16")
NVFP4 = Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3")
FP8 = Quantization("fp8_scaled", 8, strategy="channel", scale_dtype="F32", input_scale="dynamic")
BLOCKS = Quantization("fp8_scaled", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic")
OF_DEEPSEEK = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic")
TENSOR = Quantization("fp8_scaled", 8, strategy="tensor", scale_dtype="F32", input_scale="static")
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
UNPACKED = Quantization("int_quantized", 8, strategy="channel", scale_dtype="BF16", input_scale="dynamic")


def scheme(**kinds: Quantization) -> Scheme:
    """By kind: experts, shared, attention (but for what never loads packed: `packed=`), in this order."""
    dense = [*DENSE, *(() if "packed" in kinds else NOT_PACKED)]
    rules = [(name, BF16) for name in DENSE]
    if kinds["attention"].format not in ("fp8_scaled", "fp8_block") and "packed" not in kinds:
        rules = [(name, BF16) for name in dense]
    rules += [(ATTENTION, kinds["attention"]), (SHARED, kinds["shared"]), ("*", kinds["experts"])]
    return Scheme("given", tuple(Rule(pattern, quantization, "") for pattern, quantization in rules))


@pytest.fixture
def target(tinyglm) -> Checkpoint:
    return open_checkpoint(str(tinyglm("bf16")))


@pytest.fixture
def config_of(target):
    """The config.json of a draft in a scheme."""

    def config_of_(wanted: Scheme) -> dict[str, object]:
        return SGLANG.draft_config(target, target.config, family_of(target.config), wanted, 16)

    return config_of_


# Each of these was built for the tiny model and accepted, every tensor used and every parameter loaded.
@pytest.mark.parametrize(
    ("experts", "shared", "attention", "is_apart"),
    [
        (BF16, BF16, BF16, False),
        (OF_DEEPSEEK, OF_DEEPSEEK, OF_DEEPSEEK, False),
        (INT4, BF16, BF16, True),
        (INT4, INT4, INT4, False),
        (INT8, INT8, BF16, False),
        (INT4, INT8, BF16, True),
        (NVFP4, BF16, BF16, True),
        (NVFP4, NVFP4, NVFP4, False),
        (NVFP4, FP8, FP8, True),
        (FP8, FP8, FP8, False),
        (BLOCKS, BLOCKS, BLOCKS, False),
        (INT4, FP8, FP8, True),
        (FP8, INT4, BF16, True),
    ],
)
def test_a_draft_s_block_says_its_scheme(target, config_of, experts, shared, attention, is_apart):
    family, wanted = family_of(target.config), scheme(experts=experts, shared=shared, attention=attention)
    config = config_of(wanted)
    found = SGLANG.demands(target, config, family)
    for module in family.modules(target.config, 1):
        assert found.of(module.template).quantization == wanted.of(module.template).quantization, module.template
    assert SGLANG.draft_traps(target.config, config, family, found) == ()
    flag = "--disable-shared-experts-fusion" in SGLANG.serve(target, "/draft", Serving(), found).argv
    assert flag == is_apart


@pytest.mark.parametrize(
    ("experts", "shared", "attention", "said"),
    [
        (ASYMMETRIC, BF16, BF16, "`mlp.experts.*.gate_proj` as INT4 g32 asymmetric"),
        (INT4, BF16, INT4, "`self_attn.q_a_proj` as INT4 g32"),
        (NVFP4, NVFP4, NVFP4, "`self_attn.q_a_proj` as NVFP4 g16"),
        (UNPACKED, BF16, BF16, "`mlp.experts.*.gate_proj` as INT8 channel"),
    ],
)
def test_what_the_loader_refuses_is_refused_by_name(target, config_of, experts, shared, attention, said):
    wanted = scheme(experts=experts, shared=shared, attention=attention, packed=BF16)
    with pytest.raises(MtpforgeError, match="SGLang cannot load") as refused:
        SGLANG.demands(target, config_of(wanted), family_of(target.config))
    assert refused.value.what == f"SGLang cannot load {said}"


def test_blocks_of_another_size_than_those_of_all_linears_are_refused(target, config_of):
    wanted = scheme(experts=INT4, shared=BLOCKS, attention=BF16, packed=BF16)
    with pytest.raises(MtpforgeError) as refused:
        SGLANG.demands(target, config_of(wanted), family_of(target.config))
    assert refused.value.what == "`mlp.shared_experts.gate_proj` is in FP8 blocks, the group of all linears is not"


def test_fp8_with_one_scale_a_tensor_was_not_tried(target, config_of):
    with pytest.raises(MtpforgeError, match="SGLang cannot load"):
        SGLANG.demands(
            target,
            config_of(scheme(experts=TENSOR, shared=TENSOR, attention=TENSOR))
            | {"quantization_config": {"quant_method": "compressed-tensors", **one_group("float-quantized")}},
            family_of(target.config),
        )


def one_group(stored_as: str) -> dict[str, object]:
    weights = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
    inputs = {**weights, "dynamic": False}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return {"format": stored_as, "config_groups": groups, "ignore": []}


# Published layers under their own configs, at full size: accepted, or refused with the loader's words.
@pytest.mark.parametrize(
    ("name", "scheme_or_why"),
    [
        ("target-bf16", "bf16"),
        ("target-fp8", "fp8-block128"),
        ("target-nvfp4-nvidia", "bf16"),
        ("target-int4-int8mix-quanttrio", "`Unable to find matching target`"),
        ("draft-int4-cosmicraisins", "SGLang cannot load"),
    ],
)
def test_a_published_layer_under_its_own_config(target, release_config, name, scheme_or_why):
    config = release_config(name)
    try:
        found = SGLANG.demands(target, config, family_of(config)).name
    except MtpforgeError as error:
        found = f"{error.what}: {error.why}"
    assert scheme_or_why in found


def test_entries_for_layer_78_leave_nothing_of_a_draft_dense(target, release_config):
    """SGLang asks about `model.decoder.*`: the whole BF16 layer of canada-quant is lost."""
    config = release_config("target-w4a16-mtp-canada-quant")
    family = family_of(config)
    assert r"re:.*layers\.78\..*" in config["quantization_config"]["ignore"]
    with pytest.raises(MtpforgeError, match=r"SGLang cannot load `mlp.experts"):
        SGLANG.demands(target, config, family)


CONFIGS = [
    "target-awq-int4-218-experts", "target-awq-int4-fp8-mtp-graft", "target-awq-int4-ignore-to-77",
    "target-awq-int4-mtp-ignored", "target-awq-int4-no-nextn-field", "target-bf16", "target-fp8",
    "target-int4-int8mix-quanttrio", "target-int8mix-nvfp4-festr2", "target-mxfp4-amd", "target-nvfp4-lorbus",
    "target-nvfp4-lukealonso", "target-nvfp4-nvidia", "target-nvfp4-reap-168-stale-num-experts",
    "target-w4a16-mtp-canada-quant", "target-w4afp8",
]  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_stored_target_gets_a_draft_that_says_what_it_is(tmp_path, release_config, name):
    """SGLang decides by the draft's own block: whatever the target is, some draft loads beside it."""
    (tmp_path / "config.json").write_text(json.dumps(release_config(name)))
    target = open_checkpoint(str(tmp_path))
    family = family_of(target.config)
    wanted = SGLANG.demands(target, None, family)
    assert all(rule.reason for rule in wanted.rules)
    config = SGLANG.draft_config(target, target.config, family, wanted, 4)
    found = SGLANG.demands(target, config, family)
    assert [(r.pattern, r.quantization) for r in found.rules] == [(r.pattern, r.quantization) for r in wanted.rules]


@pytest.mark.parametrize(
    ("field", "value", "is_silent"),
    [
        ("dtype", None, True),  # float16 beside a BF16 target, without a word
        ("num_nextn_predict_layers", 0, False),
        ("architectures", ["SomethingElse"], False),
        ("model_type", "deepseek_v3", False),
        ("routed_scaling_factor", 1.0, True),
        ("scoring_func", "softmax", True),
        ("rope_interleave", False, True),
        ("vocab_size", None, False),
    ],
)
def test_a_field_that_sglang_would_build_another_layer_by(target, config_of, field, value, is_silent):
    family, config = family_of(target.config), config_of(load("bf16"))
    assert config[field] != value
    changed = {key: item for key, item in (config | {field: value}).items() if item is not None}
    (trap,) = SGLANG.draft_traps(target.config, changed, family, load("bf16"))
    assert (trap.id, trap.severity, trap.silent) == (f"config-{field}", "error", is_silent)
    assert "{anew}" in trap.fix


def test_a_stale_expert_count_wins(target, config_of):
    config = config_of(load("bf16")) | {"num_experts": 12}
    (trap,) = SGLANG.draft_traps(target.config, config, family_of(target.config), load("bf16"))
    assert (trap.id, trap.severity, trap.silent) == ("stale-num-experts", "error", True)


def test_fewer_experts_than_the_target_load(target, config_of):
    config = config_of(load("bf16")) | {"n_routed_experts": 12}
    (trap,) = SGLANG.draft_traps(target.config, config, family_of(target.config), load("bf16"))
    assert (trap.id, trap.severity) == ("expert-count", "note")


def test_a_quantized_draft_without_a_block_would_be_dense():
    (trap,) = SGLANG.block_traps({}, True)
    assert (trap.id, trap.severity) == ("no-draft-block", "error")
    assert SGLANG.block_traps({}, False) == SGLANG.block_traps({"quant_method": "fp8"}, True) == ()


def test_a_target_with_zero_points_is_warned_of(tinyglm):
    def traps(layout):
        target = open_checkpoint(str(tinyglm(layout)))
        return [trap.id for trap in SGLANG.target_traps(target, family_of(target.config))]

    assert traps("awq-int4") == ["asymmetric-experts"]
    assert traps("fp8") == traps("bf16") == traps("nvfp4") == []


@pytest.mark.parametrize("engine", ["sglang", "both"])
def test_a_target_in_awq_has_zero_points_that_load(target, tmp_path, engine):
    """test_sglang_matrix.py sends such experts through SGLang's loader."""
    (tmp_path / "config.json").write_text(json.dumps(target.config | {"quantization_config": AWQ}))
    told = open_checkpoint(str(tmp_path))
    assert not SGLANG.demands(told, None, family_of(told.config)).of("mlp.experts.*.up_proj").quantization.symmetric
    assert engine_of(engine).target_traps(told, family_of(told.config)) == ()


def test_zero_points_are_warned_of_in_a_target_that_is_restated_to_vllm(tinyglm):
    target = open_checkpoint(str(tinyglm("awq-int4")))
    told, _ = overlay.beside(target, engine_of("both"), load("nvfp4"))
    assert told.is_restated
    for engine in (SGLANG, engine_of("both")):
        assert engine.target_traps(told, family_of(told.config)) == SGLANG.target_traps(
            target, family_of(target.config)
        )


def test_the_command(target):
    command = SGLANG.serve(target, "/drafts/one", Serving(4, expert_parallel=True, port=8001), load("bf16")).argv
    assert command == [
        "sglang", "serve", "--model-path", target.location, "--speculative-algorithm", "NEXTN",
        "--speculative-draft-model-path", "/drafts/one", "--speculative-num-steps", "3",
        "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4", "--tp-size", "4", "--ep-size", "4",
        "--port", "8001",
    ]  # fmt: skip
    own = SGLANG.serve(target, target.location, Serving(), load("bf16")).argv
    assert "--speculative-draft-model-path" not in own


def test_ranks_that_cut_a_head_a_block_or_nothing(target):
    family = family_of(target.config)
    assert SGLANG.serving_traps(family, target.config, load("bf16"), Serving(2)) == ()
    (trap, *_) = SGLANG.serving_traps(family, target.config, load("bf16"), Serving(3))
    assert ("attention heads" in trap.message, trap.fix) == (True, "`--tp 2`")
    found = SGLANG.serving_traps(family, target.config, load("fp8-block128"), Serving(2))
    assert any("FP8 block 128x128" in trap.message for trap in found)
    assert [t.id for t in SGLANG.serving_traps(family, target.config, load("bf16"), Serving(0))] == [
        "tensor-parallel-size"
    ]


def test_a_rank_holds_its_part_of_what_is_split_and_all_of_the_rest():
    """A scale of a whole matrix is one number on every rank."""
    expert = "mlp.experts.0.down_proj"
    shapes = {f"{expert}.weight": (64, 128), f"{expert}.weight_scale_2": (), "eh_proj": (64,)}
    specs = {f"model.layers.78.{name}": Spec("F32", shape) for name, shape in shapes.items()}
    taken = [SGLANG.memory(family_of({"model_type": "glm_moe_dsa"}), {}, specs, Serving(n)) for n in (1, 4)]
    assert taken == [64 * 128 * 4 + 4 + 256, 64 * 128 + 4 + 256]


def test_every_family_that_has_drafts_has_a_class():
    assert all(SGLANG.runs(family) for family in families())


def test_a_family_without_a_class_is_refused():
    with pytest.raises(MtpforgeError, match="nothing is known of SGLang's draft class for other"):
        draft_class(replace(family_of({"model_type": "glm_moe_dsa"}), name="other", model_types=("other",)))


def test_it_is_not_the_default():
    assert next(iter(ENGINES)) == "vllm"


def test_mxfp8_is_said_to_need_a_newer_device_and_is_asked_there(target):
    family = family_of(target.config)
    (trap,) = SGLANG.serving_traps(family, target.config, load("mxfp8"), Serving())
    assert (trap.id, trap.severity) == ("compute-capability", "note")
    assert [least_capability(load(name)) for name in ("mxfp8", "fp8-block128")] == [100, 90]


@pytest.mark.parametrize(("name", "is_told"), [("awq-int4-g128", True), ("gptq-int4-g128", True), ("bf16", False)])
def test_experts_that_marlin_runs_are_served_so(target, name, is_told):
    command = SGLANG.serve(target, "/draft", Serving(), load(name)).argv
    assert ("--speculative-moe-runner-backend" in command) is is_told


@pytest.mark.parametrize(("dense", "experts"), [(["self_attn"], "dense"), (["kv_b_proj"], "awq")])
def test_beside_an_awq_target_a_draft_is_dense_where_q_a_and_kv_a_are(target, tmp_path, dense, experts):
    """SGLang joins the two as AWQ's wherever anything is AWQ."""
    block = AWQ | {"modules_to_not_convert": [*dense, "indexer.wk"]}
    (tmp_path / "config.json").write_text(json.dumps(target.config | {"quantization_config": block}))
    served = open_checkpoint(str(tmp_path))
    found = SGLANG.demands(served, None, family_of(served.config))
    assert found.of("mlp.experts.*.up_proj").quantization.format == experts
    assert found.of("self_attn.kv_b_proj").quantization == BF16
    assert found.of("self_attn.q_a_proj").quantization.format == experts


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"zero_point": False}, "no such AWQ block is run by Marlin"),
        ({"modules_to_not_convert": ["kv_b_proj", "q_a_proj", "kv_a_proj_with_mqa"]}, "are dense in a block of awq"),
        ({"quant_method": "gptq", "sym": False, "desc_act": False}, "4 and 8 bits, symmetric"),
        ({"quant_method": "gptq", "sym": True, "desc_act": True}, "no such GPTQ block is written"),
        ({"quant_method": "gptq", "sym": True, "desc_act": False, "group_size": 16}, "no such groups of GPTQ"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}}, "Quark says MXFP4"),
        ({"quant_method": "quark", "global_quant_config": {}}, "a block of Quark was not tried"),
    ],
)
def test_a_block_that_no_kernel_of_sglang_takes_is_refused_by_name(target, config_of, changed, words):
    config = config_of(load("bf16")) | {"quantization_config": AWQ | changed}
    with pytest.raises(MtpforgeError) as refused:
        SGLANG.demands(target, config, family_of(target.config))
    assert words in refused.value.what
    assert len(refused.value.why) > len("SGLang would not load the draft: ")
    assert "--scheme bf16" in refused.value.fix or "--engine sglang" in refused.value.fix
