"""GLM-5.3-Flash in SGLang: drafts of its own class, and blocks whose entries that class takes for the layer's."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import glm4_moe
import glm5_next
import pytest
from drafts import failed
from glm5_next import LAYER, N_EXPERTS, WITHIN
from safetensors_headers import store
from sglang_asked import in_sglang, verdicts

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import Serving, engine_of
from mtpforge.engines.expected import expected
from mtpforge.engines.sglang import SGLANG
from mtpforge.engines.sglang.loader.request import Request
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.planning import plan
from mtpforge.scheme import Rule, Scheme
from mtpforge.tensors import BF16, Quantization
from mtpforge.verifying import verify

NEVER = ("eh_proj", "mlp.gate", "self_attn.indexer.weights_proj")
FUSED_IN, KV_B, WK = "self_attn.*_a_proj*", "self_attn.kv_b_proj", "self_attn.indexer.wk"
REST, SHARED, EXPERTS = "self_attn.*", "mlp.shared_experts.*", "mlp.experts.*"
INT4 = Quantization("pack_quantized", 4, strategy="group", group_size=32, scale_dtype="BF16")
FP8 = Quantization("fp8_block", 8, strategy="block", block=(128, 128), scale_dtype="F32", input_scale="dynamic")
CHANNEL = Quantization("fp8_scaled", 8, strategy="channel", scale_dtype="F32", input_scale="dynamic")
NVFP4 = Quantization("nvfp4", 4, strategy="group", group_size=16, scale_dtype="F8_E4M3")
W4AFP8 = Quantization("w4afp8", 4, strategy="group", group_size=128, scale_dtype="BF16")
ASYMMETRIC = replace(INT4, symmetric=False)


def scheme(**kinds):
    patterns = {"wk": WK, "kv_b": KV_B, "fused_in": FUSED_IN, "rest": REST, "shared": SHARED, "experts": EXPERTS}
    named = dict.fromkeys(NEVER, BF16) | {pattern: kinds.get(kind, BF16) for kind, pattern in patterns.items()}
    return Scheme("given", tuple(Rule(pattern, q, "") for pattern, q in named.items()))


def every(q, **more):
    return scheme(**dict.fromkeys(("wk", "kv_b", "fused_in", "rest", "shared", "experts"), q), **more)


# Scheme -> words of SGLang's, where it takes no draft in it.
SCHEMES = {
    "dense": (scheme(), ""),
    "FP8": (every(FP8), ""),
    "FP8 but for wk": (scheme(kv_b=FP8, fused_in=FP8, rest=FP8, shared=FP8, experts=FP8), ""),
    "FP8 as published": (scheme(fused_in=FP8, rest=BF16, shared=FP8, experts=FP8), ""),
    "FP8 experts": (scheme(experts=FP8), ""),
    "FP8 by channel": (scheme(kv_b=CHANNEL, fused_in=CHANNEL, rest=CHANNEL, shared=CHANNEL, experts=CHANNEL), ""),
    "INT4 experts": (scheme(experts=INT4), ""),
    "INT4 experts and shared": (scheme(experts=INT4, shared=INT4, rest=INT4, wk=INT4), ""),
    "INT4 beside FP8": (scheme(experts=INT4, shared=CHANNEL, rest=CHANNEL, fused_in=CHANNEL, kv_b=CHANNEL), ""),
    "NVFP4 experts": (scheme(experts=NVFP4), ""),
    "W4AFP8": (Scheme("given", (Rule(EXPERTS, W4AFP8, ""), *every(FP8).rules)), ""),
    "zero points": (scheme(experts=ASYMMETRIC), "weight_zero_point"),
    "packed kv_b": (scheme(experts=INT4, kv_b=INT4), "has no attribute 'weight'"),
    "packed q_a and kv_a": (scheme(experts=INT4, fused_in=INT4), "AssertionError"),
}


@dataclass(frozen=True)
class Listed:
    """A block by hand. made: how the tensors beside it are stored, which SGLang takes or not."""

    block: dict
    made: Scheme
    loads: bool = True


def fp8(*entries):
    return glm4_moe.fp8_blocks() | {"modules_to_not_convert": ["lm_head", *entries]}


def int4(*ignored):
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True, "dynamic": False}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups,
            "quantization_status": "compressed", "ignore": ["lm_head", *ignored]}  # fmt: skip


ON_DISK, PLAIN = f"{WITHIN}layers.{LAYER}.", f"model.layers.{LAYER}."
ATTENTION = ("q_a_proj", "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj", "o_proj")
PUBLISHED = {f"self_attn.{n}": BF16 for n in ("kv_b_proj", "indexer.wk", "indexer.wq_b", "indexer.weights_proj")}
AS_PUBLISHED = Scheme(
    "given", tuple(Rule(p, q, "") for p, q in {**dict.fromkeys(NEVER, BF16), **PUBLISHED, "*": FP8}.items())
)
BLOCKS = {
    "the release's": Listed(glm5_next.fp8_blocks(), AS_PUBLISHED),
    "names without the wrapper": Listed(glm5_next.fp8_blocks(within="model."), AS_PUBLISHED),
    "another layer's names": Listed(fp8(*(f"model.layers.1.{n}" for n in PUBLISHED)), AS_PUBLISHED, loads=False),
    "a fused matrix by its own name": Listed(
        fp8("self_attn.fused_qkv_a_proj_with_mqa", *PUBLISHED),
        scheme(rest=FP8, shared=FP8, experts=FP8, wk=BF16), loads=False),  # wq_b is listed
    "a fused matrix by its parts": Listed(
        fp8(*(f"self_attn.{n}" for n in ATTENTION), "self_attn.indexer.wq_b", "self_attn.indexer.wk"),
        scheme(shared=FP8, experts=FP8), loads=False),
    "the same, as it is then": Listed(
        fp8(*(f"self_attn.{n}" for n in ATTENTION), "self_attn.indexer.wq_b", "self_attn.indexer.wk"),
        scheme(fused_in=FP8, shared=FP8, experts=FP8)),
    "the attention on disk": Listed(
        int4(f"re:{ON_DISK}self_attn.*", f"re:{PLAIN}mlp[.]shared_experts.*"), scheme(experts=INT4)),
    "the attention on disk, escaped": Listed(
        int4(f"re:{ON_DISK}self_attn.*".replace(".l", "[.]l"), "re:.*shared_experts.*"),
        scheme(experts=INT4), loads=False),
    "the whole layer": Listed(int4(f"{PLAIN}*"), scheme()),
    "the whole layer, in the wrapper": Listed(int4(f"{ON_DISK}*"), scheme(), loads=False),
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    home = tmp_path_factory.mktemp("glm5_next")
    whole = glm5_next.write(home / "bf16")
    return {"bf16": whole, "fp8": glm5_next.write_fp8(home / "fp8", whole)}


@pytest.fixture(scope="module")
def target(sources):
    return open_checkpoint(str(sources["bf16"]))


def drafted(target, wanted):
    return SGLANG.draft_config(target, target.config, family_of(target.config), wanted, N_EXPERTS)


def folder_of(target, config, wanted, home):
    family = family_of(target.config)
    home.mkdir()
    (home / "config.json").write_text(json.dumps(config))
    store(home / "model.safetensors", expected(wanted, family, config, LAYER, N_EXPERTS))
    return home


def same(found, wanted, target):
    modules = family_of(target.config).modules(target.config, 1)
    return all(found.of(m.template).quantization == wanted.of(m.template).quantization for m in modules)


@pytest.mark.parametrize(("wanted", "refused"), SCHEMES.values(), ids=SCHEMES)
def test_rules_take_the_schemes_that_the_loader_takes(target, wanted, refused):
    try:
        found = SGLANG.demands(target, drafted(target, wanted), family_of(target.config))
    except MtpforgeError:
        assert refused
        return
    assert not refused
    assert same(found, wanted, target)


@pytest.mark.parametrize("listed", BLOCKS.values(), ids=BLOCKS)
def test_rules_read_a_block_as_the_loader_reads_it(target, listed):
    config = drafted(target, scheme()) | {"quantization_config": listed.block}
    try:
        found = SGLANG.demands(target, config, family_of(target.config))
    except MtpforgeError:
        assert not listed.loads
        return
    assert same(found, listed.made, target) is listed.loads


def test_target_s_own_block_is_read_by_its_names_on_disk(sources):
    held = open_checkpoint(str(sources["fp8"]))
    assert same(SGLANG.demands(held, None, family_of(held.config)), AS_PUBLISHED, held)


def test_config_lies_in_the_wrapper_and_states_the_pool_that_sglang_needs(target):
    config = drafted(target, scheme())
    assert (config["model_type"], config["architectures"]) == ("glm5_next", ["Glm5NextForConditionalGeneration"])
    assert config["text_config"]["index_kpool_compress"] is True
    assert not {"vision_config", "num_experts"} & (config.keys() | config["text_config"].keys())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("index_kpool_compress", False, "it must be true"), ("swiglu_limit", 7.0, "`swiglu_limit` is 7.0")],
)
def test_field_of_another_model_is_said(target, field, value, words):
    config = drafted(target, scheme())
    config["text_config"] |= {field: value}
    (trap,) = SGLANG.draft_traps(target.config, config, family_of(target.config), scheme())
    assert words in trap.message


BUILT = {
    "dense": (None, "bf16", "sglang"),
    "FP8, from FP8": (glm5_next.fp8_blocks(), "fp8", "sglang"),
    "for both": (None, "fp8", "both"),
}


@pytest.fixture
def built(sources, tmp_path):
    def make(block, kind, engine):
        served = open_checkpoint(str(glm4_moe.target(tmp_path / "target", sources["bf16"], block)))
        stored = open_checkpoint(str(sources[kind]))
        made = plan(stored, served, engine=engine)
        build(made, {"source": stored, "target": served}, tmp_path / "draft", check="off")
        return tmp_path / "draft", served, stored

    return make


@pytest.mark.parametrize(("block", "kind", "engine"), BUILT.values(), ids=BUILT)
def test_draft_passes_verify(built, block, kind, engine):
    draft, served, stored = built(block, kind, engine)
    report = verify(draft, served, stored, engine=engine)
    assert report.ok, failed(report)


def test_attention_of_the_release_is_copied_for_sglang(built, sources):
    draft, _, _ = built(*BUILT["FP8, from FP8"])
    made, stored = (open_checkpoint(str(folder)).names for folder in (draft, sources["fp8"]))
    assert made == {name for name in stored if name.startswith(PLAIN)}
    assert f"{PLAIN}self_attn.q_a_proj.weight_scale_inv" in made


@pytest.mark.engine
@in_sglang
@pytest.mark.parametrize(("block", "kind", "engine"), BUILT.values(), ids=BUILT)
def test_sglang_takes_a_built_draft(built, block, kind, engine):
    draft, served, _ = built(block, kind, engine)
    flags = [word for f in SGLANG.serve(served, str(draft), Serving(), scheme()).flags for word in f.words]
    found = verdicts({"draft": Request(served.location, str(draft), arguments=flags)})["draft"]
    assert found["errors"] == []
    assert found["facts"]["class"].endswith(".Glm5NextForConditionalGenerationNextN")


@pytest.mark.engine
@in_sglang
def test_loader_says_what_the_rules_say(target, tmp_path):
    requests, words = {}, {}
    for number, (name, (wanted, words[name])) in enumerate(SCHEMES.items()):
        folder = folder_of(target, drafted(target, wanted), wanted, tmp_path / f"scheme{number}")
        requests[name] = Request(target.location, str(folder), same_config=False)
    for number, (name, listed) in enumerate(BLOCKS.items()):
        config = drafted(target, scheme()) | {"quantization_config": listed.block}
        folder = folder_of(target, config, listed.made, tmp_path / f"block{number}")
        requests[name] = Request(target.location, str(folder), same_config=False)
        words[name] = None if not listed.loads else ""
    stale = drafted(target, scheme())
    stale["text_config"] |= {"num_experts": 2 * N_EXPERTS, "num_local_experts": 2 * N_EXPERTS}
    requests["stale counts"] = Request(
        target.location, str(folder_of(target, stale, scheme(), tmp_path / "stale")), same_config=False
    )
    words["stale counts"] = ""
    found, wrong = verdicts(requests), {}
    for name, wanted in words.items():
        said = found[name].get("errors", [found[name].get("error")])
        if bool(said) != (wanted != "") or (wanted and not any(wanted in text for text in said)):
            wrong[name] = said[:3]
    assert wrong == {}


def test_one_draft_for_both_is_wrapped_once(target):
    both = engine_of("both")
    family = family_of(target.config)
    config = both.draft_config(target, target.config, family, both.demands(target, None, family), N_EXPERTS)
    assert config["text_config"]["index_kpool_compress"] is True
    assert both.draft_traps(target.config, config, family, scheme()) == ()
