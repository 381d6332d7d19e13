"""Traps that need source and target together: one test that falls into each, one that does not."""

from __future__ import annotations

import json
import os
import shutil
from types import MappingProxyType

import pytest

from mtpforge import traps
from mtpforge.checkpoint import open_checkpoint
from mtpforge.checkpoint.checkpoint import Stray
from mtpforge.engines import ENGINES
from mtpforge.families import family_of
from mtpforge.tensors import Spec, TensorRef

ENGINE = ENGINES["vllm"]
P = "model.layers.78."
BIAS = f"{P}mlp.gate.e_score_correction_bias"
MAIN = "model.layers.77.input_layernorm.weight"
LAYER = frozenset({MAIN, BIAS, *(f"{P}mlp.experts.{n}.gate_proj.weight" for n in range(256))})


class Claimed:
    """A checkpoint of which only claims exist."""

    def __init__(self, config, label, *, names=LAYER, bias="F32", bases=(), strays=()):
        self.config = MappingProxyType(dict(config))
        self.label = self.identity = label
        self.location, _, self.revision = label.partition("@")
        self.names, self.bias, self.bases, self.stray = frozenset(names), bias, bases, tuple(strays)
        self.has_headers = bool(names)

    def base_models(self):
        return self.bases

    def small_file(self, name):
        return None

    def strays(self, prefix):
        return self.stray

    def locate(self, names):
        return {name: TensorRef(name, Spec(self.bias, (256,)), "f", 0, 1) for name in names}


@pytest.fixture
def config(release_config):
    return {**release_config("target-bf16"), "num_nextn_predict_layers": 1}


def found(target, source):
    family = family_of(target.config)
    return {trap.id: trap for trap in traps.found(target, source, family, ENGINE)}


def test_a_good_pair_falls_into_none(config):
    target = Claimed(config, "somebody/GLM-5.2-AWQ", bases=("zai-org/GLM-5.2",))
    assert found(target, Claimed(config, "zai-org/GLM-5.2-FP8")) == {}
    assert found(target, target) == {}


@pytest.mark.parametrize(
    ("label", "bases"), [("zai-org/GLM-5.3-FP8", ()), ("somebody/mtp-head", ("zai-org/GLM-5.3",)), ("./GLM-5.3", ())]
)
def test_a_source_of_another_version(config, label, bases):
    trap = found(Claimed(config, "x/GLM-5.2-AWQ"), Claimed(config, label, bases=bases))["other-version"]
    assert (trap.silent, trap.severity) == (True, "warning")
    assert "the source is GLM-5.3 by its " in trap.message.replace("`base_model` of ", "")
    assert "the target GLM-5.2 by its name (GLM-5.2-AWQ): " in trap.message


@pytest.mark.parametrize("label", ["zai-org/GLM-5.2-FP8@0123abc", "some/folder", "x/GLM-5.2-Pruned-504B"])
def test_names_without_another_version_say_nothing(config, label):
    assert "other-version" not in found(Claimed(config, "x/GLM-5.2-AWQ"), Claimed(config, label))


def test_a_source_with_another_rope_base(config):
    other = json.loads(json.dumps(config))
    other["rope_parameters"]["rope_theta"] = 1_000_000
    trap = found(Claimed(config, "t"), Claimed(other, "s"))["other-numbers"]
    assert trap.message.endswith("rope_theta 1000000 against 8000000")


def test_a_config_with_another_expert_count_than_the_layer(config):
    source = Claimed({**config, "n_routed_experts": 156}, "s")
    assert "says 156, 256 are stored" in found(Claimed(config, "t"), source)["stale-expert-count"].message


def test_a_correction_bias_in_bf16(config):
    trap = found(Claimed(config, "t"), Claimed(config, "s", bias="BF16"))["coarse-correction-bias"]
    assert (trap.where, trap.silent) == (BIAS, True)


def test_a_target_of_config_alone(config):
    trap = found(Claimed(config, "t", names=()), Claimed(config, "s"))["config-only-target"]
    assert trap.severity == "note"


def test_a_config_that_promises_a_layer(config):
    target = Claimed(config, "t", names={"lm_head.weight"})
    assert found(target, Claimed(config, "s"))["layer-without-weights"].where == "t"
    silent = Claimed({**config, "num_nextn_predict_layers": 0}, "t", names={"lm_head.weight"})
    assert "layer-without-weights" not in found(silent, Claimed(config, "s"))


def test_weights_outside_the_index(config):
    target = Claimed(config, "t", strays=[Stray(BIAS, ("mtp.safetensors",), "")])
    assert "1 tensors in mtp.safetensors" in found(target, Claimed(config, "s"))["weights-outside-index"].message


def test_superseded_copies(config):
    source = Claimed(config, "s", strays=[Stray(BIAS, ("a.safetensors", "b.safetensors"), "b.safetensors")])
    assert "1 tensors, also in a.safetensors" in found(Claimed(config, "t"), source)["superseded-copies"].message


def test_a_target_that_is_its_own_source_is_told_once(config):
    both = Claimed(config, "t", strays=[Stray(BIAS, ("a", "b"), "b")])
    assert len(traps.found(both, both, family_of(config), ENGINE)) == 1


def test_every_trap_says_what_to_type(config):
    assert all(row.fix for row in traps.TRAPS)
    assert len({row.id for row in traps.TRAPS}) == len(traps.TRAPS)


def test_a_target_without_a_main_layer_is_a_draft(config):
    source = Claimed(config, "s")
    trap = found(Claimed(config, "t", names=LAYER - {MAIN}), source)["only-the-layer"]
    assert (trap.severity, trap.message) == ("error", "the target holds only the MTP layer: this is a draft")
    assert "only-the-layer" not in found(Claimed(config, "t", names={MAIN}), source)
    assert "only-the-layer" not in found(Claimed(config, "t", names=()), source)  # config.json alone


def test_a_source_may_hold_the_layer_alone(config):
    assert "only-the-layer" not in found(Claimed(config, "t"), Claimed(config, "s", names=LAYER - {MAIN}))


def test_a_stray_shard_that_is_cut_short_is_no_file_that_an_engine_reads(tinyglm, tmp_path):
    """vLLM's and SGLang's loaders leave out what the index does not name (filter_duplicate_safetensors_files)."""
    target = shutil.copytree(tinyglm("awq-int4"), tmp_path / "target")
    (target / "model-00009-of-00009.safetensors").write_bytes(min(target.glob("*.safetensors")).read_bytes()[:-1])
    assert traps.of_cut_short(open_checkpoint(str(target))) == ()
    (target / "model.safetensors.index.json").unlink()
    (trap,) = traps.of_cut_short(open_checkpoint(str(target)))
    assert "model-00009-of-00009.safetensors" in trap.message


def test_a_target_of_which_a_file_is_cut_short(tinyglm, tmp_path):
    target = tmp_path / "target"
    shutil.copytree(tinyglm("awq-int4"), target)
    whole, source = open_checkpoint(str(target)), open_checkpoint(str(tinyglm("bf16")))
    family = family_of(whole.config)
    assert "cut-short" not in {trap.id for trap in traps.found(whole, source, family, ENGINE)}
    file = min(target.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 1)
    cut = open_checkpoint(str(target))
    (trap,) = (t for t in traps.found(cut, source, family, ENGINE) if t.id == "cut-short")
    assert (trap.severity, file.name in trap.message) == ("warning", True)
    assert "the target" not in trap.message  # inspect asks it of drafts and sources too
    os.truncate(file, 12)  # within its header
    (trap,) = traps.of_cut_short(open_checkpoint(str(target)))
    assert file.name in trap.message
