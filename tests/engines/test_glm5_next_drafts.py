"""GLM-5.3-Flash's drafts: what vLLM's loader takes beside each target, which is not always what its block says."""

from __future__ import annotations

import json
import os

import glm4_moe
import glm5_next
import pytest
from drafts import failed, reconfigured
from glm5_next import DENSE, LAYER, N_EXPERTS, WITHIN
from safetensors import safe_open

import mtpforge
from mtpforge import scheme as schemes
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES, overlay
from mtpforge.engines.engine import Serving
from mtpforge.engines.vllm import installed, serving
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.inspecting import inspect
from mtpforge.planning import plan
from mtpforge.scheme import Rule, Scheme
from mtpforge.verifying import verify

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
UNSTATED = {"awq-int4-g128", "gptq-int4-g128", "w4afp8"}  # presets that no method of vLLM states here
in_vllm = pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM")
VLLM = ENGINES["vllm"]
EXPERTS, SHARED, ATTENTION = 3 * N_EXPERTS, 3, 4
# eh_proj, router and its bias; attention of 5 matrices, 2 norms and an indexer of 7; 5 norms.
ALL = EXPERTS + SHARED + 3 + 5 + 2 + 7 + 5
PARTS = ("experts.0.gate_proj", "experts.0.up_proj", "experts.0.down_proj",
         "shared_experts.gate_proj", "shared_experts.up_proj", "shared_experts.down_proj")  # fmt: skip
BLOCKS_OF = tuple(f"mlp.{part}" for part in PARTS)
ON_DISK = tuple(f"{WITHIN}layers.{LAYER}.{name}" for name in BLOCKS_OF)
# Target's block -> source, tensors of a draft beside it. vLLM renames `model.language_model.` in every entry and asks
# about the layer as `model.layers.2.`: exclusions by names on disk miss it, but for single matrices of experts under
# method fp8, whose entries need only contain the name.
TARGETS = {
    "unquantized": (None, "bf16", ALL),
    "unquantized, from FP8": (None, "fp8", ALL),
    "FP8": (glm5_next.fp8_blocks(), "bf16", ALL + EXPERTS + SHARED),
    "FP8, from FP8": (glm5_next.fp8_blocks(), "fp8", ALL + EXPERTS + SHARED + ATTENTION),
    "FP8, excluded on disk": (glm5_next.fp8_blocks(*BLOCKS_OF), "bf16", ALL + 2),
    "FP8, excluded as asked": (glm5_next.fp8_blocks(*BLOCKS_OF, within="model."), "bf16", ALL),
    "ModelOpt": (glm5_next.modelopt(), "bf16", ALL + 2 * (EXPERTS + SHARED)),
    "ModelOpt, excluded on disk": (
        glm5_next.modelopt(f"{WITHIN}layers.{LAYER}*"), "bf16", ALL + 2 * (EXPERTS + SHARED)),
    "ModelOpt, excluded by wildcard": (glm5_next.modelopt(f"*layers.{LAYER}.*"), "bf16", ALL),
    "NVFP4": (glm5_next.nvfp4(), "fp8", ALL + 2 * (EXPERTS + SHARED)),
    "NVFP4, excluded on disk": (glm5_next.nvfp4(*ON_DISK), "bf16", ALL + 2 * (EXPERTS + SHARED)),
    "NVFP4, excluded by expression": (glm5_next.nvfp4(f"re:.*layers[.]{LAYER}[.].*"), "bf16", ALL),
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glm5_next")
    whole = glm5_next.write(folder / "bf16")
    return {"bf16": whole, "fp8": glm5_next.write_fp8(folder / "fp8", whole)}


@pytest.fixture
def built(sources, tmp_path):
    def make(block, kind="bf16", wanted=""):
        served = open_checkpoint(str(glm4_moe.target(tmp_path / "target", sources["bf16"], block)))
        stored, scheme = open_checkpoint(str(sources[kind])), None
        if wanted:
            served, scheme = overlay.beside(served, VLLM, schemes.load(wanted))
        made = plan(stored, served, scheme=scheme)
        build(made, {"source": stored, "target": served}, tmp_path / "draft", check="off")
        return tmp_path / "draft", served, stored

    return make


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("block", "kind", "n_tensors"), TARGETS.values(), ids=TARGETS)
def test_draft_passes_verify_in_the_wrapper_by_which_vllm_knows_it(built, block, kind, n_tensors):
    draft, served, stored = built(block, kind)
    report = verify(draft, served, stored)
    assert report.ok, failed(report)
    names = open_checkpoint(str(draft)).names
    assert len(names) == n_tensors
    config = json.loads((draft / "config.json").read_text())
    assert config["model_type"] == "glm5_next"
    assert config["text_config"]["model_type"] == "glm5_next_text"
    assert not {"vision_config", "rope_parameters", "rope_theta"} & (config.keys() | config["text_config"].keys())


@pytest.mark.engine
@in_vllm
@pytest.mark.parametrize(("block", "kind", "n_tensors"), TARGETS.values(), ids=TARGETS)
def test_vllm_takes_the_draft(built, block, kind, n_tensors):
    draft, served, _ = built(block, kind)
    report = installed.check(draft, served, python=PYTHON)
    assert report.ok, report.facts["errors"]
    assert str(report.facts["class"]).endswith(".Glm5NextMTP")
    assert report.facts["tensors"] == n_tensors


# Target that leaves the layer out -> a scheme that it does not ask for, tensors of the draft.
RESTATED = {
    "FP8": (glm5_next.fp8_blocks(*BLOCKS_OF, within="model."), "fp8-block128", ALL + EXPERTS + SHARED),
    "FP8, on disk": (glm5_next.fp8_blocks(*BLOCKS_OF), "fp8-block128", ALL + EXPERTS + SHARED),
    "NVFP4": (glm5_next.nvfp4(f"re:.*layers[.]{LAYER}[.].*"), "int4-g128-sym", ALL + 2 * EXPERTS + 2 * SHARED),
    "Quark, of quantized activations": (
        glm5_next.quark(f"re:.*layers[.]{LAYER}[.].*", dynamic=True), "mxfp4", ALL + EXPERTS),
    "unquantized": (None, "int4-g128-sym", ALL + 2 * EXPERTS + 2 * SHARED),
}  # fmt: skip


@pytest.mark.parametrize(("block", "wanted", "n_tensors"), RESTATED.values(), ids=RESTATED)
def test_restated_block_names_the_layer_as_vllm_asks_about_it(built, block, wanted, n_tensors):
    draft, served, stored = built(block, wanted=wanted)
    assert served.is_restated
    assert len(open_checkpoint(str(draft)).names) == n_tensors
    assert verify(draft, served, stored).ok
    assert serving.overrides(served).keys() == {"quantization_config"}


@pytest.mark.engine
@in_vllm
@pytest.mark.parametrize(("block", "wanted", "n_tensors"), RESTATED.values(), ids=RESTATED)
def test_vllm_takes_what_the_override_says_of_a_nested_config_and_nothing_without_it(built, block, wanted, n_tensors):
    draft, served, _ = built(block, wanted=wanted)
    report = VLLM.ask(draft, served, Serving(), PYTHON)
    assert report.ok, report.facts["errors"]
    assert report.facts["tensors"] == n_tensors
    assert not installed.check(draft, draft.parent / "target", python=PYTHON).ok


def heads_of(block, tmp_path, sources):
    served = glm4_moe.target(tmp_path / "target", sources["bf16"], block)
    return [head["scheme"] for head in inspect(open_checkpoint(str(served))).facts["heads"]]


def test_every_preset_is_a_head_beside_an_unquantized_target(sources, tmp_path):
    found = heads_of(None, tmp_path, sources)
    assert set(found) >= set(schemes.names()) - {"int4-g128-sym", *UNSTATED}
    assert {"int4-g128-sym", "lightest"} & set(found)  # one and the same where nothing may be quantized but experts


def test_what_a_rule_names_is_no_catch_all_and_is_refused_with_the_presets_that_can_be(built):
    """Everything else of a preset that vLLM builds dense in this family stays dense."""
    preset = schemes.load("int4-g128-sym")
    named = Rule("self_attn.q_?_proj", preset.of("mlp.experts.*.up_proj").quantization, "by name")
    with pytest.raises(MtpforgeError) as caught:
        overlay.beside(built(None)[1], VLLM, Scheme("named", (named, *preset.rules)))
    assert caught.value.why == "`self_attn.q_a_proj` would be BF16 (vLLM builds the attention dense), not INT4 g128"
    offered = caught.value.fix.partition(": ")[2].split(", ")
    assert offered == [name for name in schemes.names() if name not in UNSTATED]


def test_layer_on_its_own_is_as_light_as_vllm_builds_it(sources, tmp_path):
    made = mtpforge.extract(str(sources["bf16"]), out=tmp_path / "layer", scheme="int8-channel", check="off")
    stored = {name.removeprefix(f"model.layers.{LAYER}.") for name in open_checkpoint(str(made.path)).names}
    assert {"mlp.experts.0.up_proj.weight_scale", "self_attn.o_proj.weight"} <= stored
    assert "self_attn.o_proj.weight_scale" not in stored


def test_attention_in_fp8_is_copied_where_vllm_decodes_it_and_decoded_where_it_does_not(built, sources):
    draft, _, _ = built(glm5_next.fp8_blocks(), "fp8")
    (file,) = draft.glob("*.safetensors")
    prefix, name = f"layers.{LAYER}.self_attn.", "q_b_proj.weight"
    with safe_open(file, "pt") as made, safe_open(sources["fp8"] / "model.safetensors", "pt") as stored:
        for suffix in ("", "_scale_inv"):
            ours = made.get_tensor(f"model.{prefix}{name}{suffix}")
            assert ours.float().equal(stored.get_tensor(f"{WITHIN}{prefix}{name}{suffix}").float())
        assert {f"model.layers.{LAYER}.{module}.weight_scale_inv" for module in DENSE}.isdisjoint(made.keys())


WRONG = {
    "alone": (lambda config: config.update(config.pop("text_config")), 'is "glm5_next_text", it must be "glm5_next"'),
    "pool": (lambda config: config["text_config"].update(index_kpool=16), "`index_kpool` is 16, it must be 4"),
    "router": (lambda config: config["text_config"].pop("moe_router_dtype"), "`moe_router_dtype` is missing"),
    "limit": (lambda config: config["text_config"].update(swiglu_limit=7.0), "`swiglu_limit` is 7.0, it must be 10.0"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_config_of_another_model_or_without_its_wrapper_fails_verify(built, tmp_path, change, words):
    draft, served, stored = built(None)
    found = failed(verify(reconfigured(draft, tmp_path / "changed", change), served, stored))
    assert found.keys() == {"config"}
    assert words in found["config"]


@pytest.mark.engine
@in_vllm
def test_vllm_knows_no_draft_without_its_wrapper(built, tmp_path):
    draft, served, _ = built(None)
    bare = reconfigured(draft, tmp_path / "bare", WRONG["alone"][0])
    errors = installed.check(bare, served, python=PYTHON).facts["errors"]
    assert errors[0].startswith("draft config: "), errors


def test_fewer_experts_than_the_target_are_taken(sources, tmp_path):
    served = open_checkpoint(str(glm4_moe.target(tmp_path / "target", sources["bf16"], None)))
    stored = open_checkpoint(str(sources["bf16"]))
    assert VLLM.fewer_experts(family_of(served.config)) == ""
    build(plan(stored, served, kept=(0, 3)), {"source": stored, "target": served}, tmp_path / "draft", check="off")
    assert verify(tmp_path / "draft", served).ok
