"""A source whose MTP layer is told by a block of its own, as dnhkng's: an FP8 layer inside an INT4 model."""

from __future__ import annotations

import json
import os

import pytest
import torch
from respelled import layer_under_its_own_block
from safetensors.torch import load_file

import mtpforge
from mtpforge.engines.vllm import installed
from mtpforge.errors import MtpforgeError

LAYER = "model.layers.3."


@pytest.fixture(scope="module")
def published(tinyglm, tmp_path_factory):
    """An INT4 model with the FP8 release's layer, and a block that speaks of this layer alone."""

    def make(size=128):
        out = tmp_path_factory.mktemp("published") / "model"
        return layer_under_its_own_block(tinyglm("awq-int4"), tinyglm("fp8"), out, size)

    return make


@pytest.fixture(scope="module")
def grafts(published, tinyglm, tmp_path_factory):
    """The layer of the published model, and that of the FP8 release, in the INT4 model as it was."""
    home = tmp_path_factory.mktemp("grafts")
    made = [
        mtpforge.graft(layer, tinyglm("awq-int4"), out=home / name, link="sym")
        for name, layer in (("theirs", published()), ("release", tinyglm("fp8")))
    ]
    assert all(each.report.ok for each in made)
    return [each.path for each in made]


def weights(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def assert_same(one, other):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if ours[n].dtype != theirs[n].dtype or not torch.equal(ours[n], theirs[n])] == []


@pytest.mark.parametrize("size", [128, 64])
def test_draft_of_it_is_the_one_of_the_fp8_release(published, tinyglm, tmp_path, size):
    """Blocks of 64 are known by the layer's own block alone: the INT4 one speaks of none."""
    source = published(size)
    draft = mtpforge.build(tinyglm("awq-int4"), source, out=tmp_path / "theirs", check="off")
    of_release = mtpforge.build(tinyglm("awq-int4"), tinyglm("fp8"), out=tmp_path / "release", check="off")
    assert mtpforge.verify(draft.path, tinyglm("awq-int4"), source).ok
    assert_same(draft.path, of_release.path)


def test_layer_goes_into_a_stock_engine_s_target_as_it_is_stored(grafts):
    theirs, release = grafts
    assert_same(theirs, release)
    assert torch.float8_e4m3fn in {tensor.dtype for tensor in weights(theirs).values()}
    configs = [json.loads((folder / "config.json").read_text()) for folder in grafts]
    assert "mtp_quantization_config" not in configs[0]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    assert mtpforge.inspect(theirs).facts["drafts_for_itself"]


def test_the_published_model_is_made_fit_for_a_stock_engine_by_its_own_layer(published, tmp_path):
    """In place: its layer into itself, whose key goes."""
    model = published()
    made = mtpforge.graft(model, model, out=tmp_path / "graft", link="sym")
    assert made.report.ok
    assert "mtp_quantization_config" not in json.loads((made.path / "config.json").read_text())
    assert weights(made.path)[f"{LAYER}mlp.experts.0.up_proj.weight"].dtype == torch.float8_e4m3fn


def test_a_merge_with_it_says_how_its_layer_is_stated_in_one_block(published, tinyglm, tmp_path):
    model, takes = published(), f"{LAYER}*"
    with pytest.raises(MtpforgeError) as caught:
        mtpforge.merge(tinyglm("awq-int4"), {takes: model}, out=tmp_path / "merged", link="sym")
    assert f"`mtpforge graft {model} --into {model} -o PATH`" in caught.value.fix
    stock = mtpforge.graft(model, model, out=tmp_path / "stock", link="sym").path
    merged = mtpforge.merge(tinyglm("awq-int4"), {takes: stock}, out=tmp_path / "merged", link="sym")
    assert merged.report.ok
    assert weights(merged.path)[f"{LAYER}mlp.experts.0.up_proj.weight"].dtype == torch.float8_e4m3fn


@pytest.mark.engine
@pytest.mark.skipif(not os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON"), reason="no interpreter with vLLM is named")
def test_vllm_takes_the_graft_as_its_own_target_and_draft(grafts):
    report = installed.check(grafts[0], grafts[0], python=os.environ["MTPFORGE_TEST_ENGINE_PYTHON"])
    assert report.ok, report.facts["errors"]
