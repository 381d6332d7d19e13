"""Grafts of tiny layers of every format into tiny targets: what is in them by safetensors and json alone."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from grafted import INDEX, LAYER, around, check_index, digests, files, of_layer, state, tensors

import mtpforge
from mtpforge import cli
from mtpforge.durable import effects
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError

# layer, target, scheme of what goes in, whether it is stored so already
GRAFTS = (
    ("bf16", "awq-int4", "bf16", True),
    ("fp8", "awq-int4", "fp8-block128", True),
    pytest.param("int4-int8mix", "awq-int4", "int8-channel", True, marks=pytest.mark.slow),
    # ModelOpt's bytes are none of compressed-tensors'
    pytest.param("nvfp4", "awq-int4", "int4-g32-asym", False, marks=pytest.mark.slow),
    ("bf16", "nvfp4", "bf16", True),
    ("fp8", "bf16", "fp8-block128", True),
)


@pytest.fixture(scope="module")
def graft(tinyglm, tmp_path_factory):
    """A graft with symbolic links, made once for each pair."""
    made = {}

    def make(layer, target):
        if (layer, target) not in made:
            out = tmp_path_factory.mktemp(f"{layer}-in-{target}") / "graft"
            made[layer, target] = mtpforge.graft(tinyglm(layer), tinyglm(target), out=out, link="sym")
        return made[layer, target]

    return make


def respelled(name):
    """DeepSeek's FP8 in compressed-tensors' names; vLLM decodes the indexer's keys itself, under the old one."""
    return name if "indexer.wk." in name else name.replace("weight_scale_inv", "weight_scale")


@pytest.mark.parametrize(("layer", "target", "scheme", "as_stored"), GRAFTS)
def test_graft_is_the_target_with_the_layer_in_it(graft, tinyglm, layer, target, scheme, as_stored):
    made = graft(layer, target)
    assert made.report.ok
    assert made.document["scheme"] == scheme
    held, before = tensors(made.path), tensors(tinyglm(target))
    assert around(held) == around(before)
    check_index(made.path)
    if as_stored:
        spell = respelled if target != "fp8" else str
        stored = {spell(name): row[1:] for name, row in of_layer(tensors(tinyglm(layer))).items()}
        left_out = ("shared_head.head", "embed_tokens")
        assert digests(of_layer(held)) == {n: row for n, row in stored.items() if not any(x in n for x in left_out)}
    assert made.document["tensors"].keys() == of_layer(held).keys()


@pytest.mark.parametrize(("layer", "target"), [("fp8", "awq-int4"), ("bf16", "nvfp4"), ("fp8", "bf16")])
def test_config_says_what_the_layer_is_and_nothing_else_new(graft, tinyglm, layer, target):
    made = graft(layer, target)
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (made.path, tinyglm(target)))
    assert config["num_nextn_predict_layers"] == 1
    assert config["moe_router_dtype"] == "float32"
    changed = {key for key in config.keys() | before.keys() if config.get(key) != before.get(key)}
    assert changed <= {"quantization_config", "moe_router_dtype", "num_nextn_predict_layers"}
    report = mtpforge.inspect(made.path)
    assert report.facts["drafts_for_itself"]
    assert "--hf-overrides" not in mtpforge.serve_command(made.path, made.path)


def test_superseded_layer_is_physically_gone(graft, tinyglm):
    """One target holds its layer in a shard with others, and one in files of its own."""
    held = tensors(graft("fp8", "bf16").path)
    assert {row[0] for row in of_layer(held).values()} == {"model-mtp.safetensors"}
    assert not any("weight_scale_inv" in n and "indexer.wk" not in n for n in of_layer(held))
    names = {path.name for path in graft("bf16", "nvfp4").path.iterdir()}
    assert (tinyglm("nvfp4") / "model-mtp-inputscales.safetensors").exists()
    assert "model-mtp-inputscales.safetensors" not in names


def test_side_file_says_what_config_says(graft):
    folder = graft("bf16", "nvfp4").path
    side = json.loads((folder / "hf_quant_config.json").read_text())
    excluded = side["quantization"]["exclude_modules"]
    block = json.loads((folder / "config.json").read_text())["quantization_config"]
    for name in ("mlp.experts", "self_attn.o_proj"):
        assert LAYER + name in excluded
        assert LAYER + name in block["ignore"]


def test_side_file_excludes_the_head_where_nothing_else_changes(graft, tinyglm):
    """The layer goes in as it is stored: neither file is restated, and both have to name the draft's head."""
    folder = graft("nvfp4", "nvfp4").path
    side, block = (json.loads((folder / name).read_text()) for name in ("hf_quant_config.json", "config.json"))
    before = json.loads((tinyglm("nvfp4") / "hf_quant_config.json").read_text())
    assert block["quantization_config"]["ignore"][-1] == LAYER + "head"
    excluded = [*before["quantization"]["exclude_modules"], LAYER + "head"]
    changed = {"quantization": {**before["quantization"], "exclude_modules": excluded}, "quant_method": "modelopt"}
    assert side == {**before, **changed}


def test_side_file_of_another_form_is_left_alone_where_the_block_stays(tinyglm, tmp_path):
    target = shutil.copytree(tinyglm("fp8"), tmp_path / "target")
    (target / "hf_quant_config.json").write_text("no JSON")
    made = mtpforge.graft(tinyglm("fp8"), target, out=tmp_path / "graft")
    assert (made.path / "hf_quant_config.json").read_text() == "no JSON"


def test_side_file_that_cannot_say_it_goes(tinyglm, tmp_path):
    target = shutil.copytree(tinyglm("nvfp4"), tmp_path / "target")
    (target / "hf_quant_config.json").write_text("no JSON")
    made = mtpforge.graft(tinyglm("nvfp4"), target, out=tmp_path / "graft")
    assert not (made.path / "hf_quant_config.json").exists()
    assert json.loads((made.path / "mtpforge-graft.json").read_text())["side_file"] == "goes"


def test_verify_judges_the_layer_of_a_graft_that_is_named_twice(graft, tinyglm):
    folder = graft("fp8", "awq-int4").path
    report = mtpforge.verify(folder, folder, tinyglm("fp8"))
    assert report.ok
    assert report.facts["n_tensors"] == 129
    other = mtpforge.verify(folder, folder, tinyglm("int4-int8mix"))
    assert other.facts["relative_error"].keys() == report.facts["relative_error"].keys()


@pytest.mark.parametrize("link", ["hard", pytest.param("sym", marks=pytest.mark.slow), "copy"])
def test_files_that_stay_are_shared_as_asked_and_the_target_is_untouched(tinyglm, tmp_path, link):
    target = tmp_path / "target"
    shutil.copytree(tinyglm("bf16"), target)
    before = state(target)
    made = mtpforge.graft(tinyglm("fp8"), target, out=tmp_path / "graft", link=link)
    assert state(target) == before
    own = {"config.json", INDEX, "mtpforge-graft.json", "model-mtp.safetensors", "model-00003-of-00003.safetensors"}
    for path in made.path.iterdir():
        original = target / path.name
        if path.name in own:
            assert not path.is_symlink()
            assert path.stat().st_nlink == 1
        elif link == "sym":
            assert path.readlink() == original
        else:
            assert not path.is_symlink()
            assert (path.stat().st_ino == original.stat().st_ino) == (link == "hard")
            assert path.read_bytes() == original.read_bytes()
    assert digests(tensors(made.path)).keys() > around(tensors(target)).keys()


def test_links_lead_behind_those_of_a_cache(tinyglm, tmp_path):
    cached = tmp_path / "snapshot"
    cached.mkdir()
    for path in tinyglm("awq-int4").iterdir():
        (cached / path.name).symlink_to(path)
    made = mtpforge.graft(tinyglm("bf16"), cached, out=tmp_path / "graft", link="sym")
    assert (made.path / "tokenizer.json").readlink() == (tinyglm("awq-int4") / "tokenizer.json").resolve()


@pytest.mark.slow
def test_one_weight_file_without_an_index_gets_one(tinyglm, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    target = tmp_path / "target"
    shutil.copytree(tinyglm("awq-int4"), target)
    whole: dict[str, torch.Tensor] = {}
    for path in target.glob("*.safetensors"):
        whole |= load_file(path)
        path.unlink()
    (target / INDEX).unlink()
    save_file(whole, target / "model.safetensors", metadata={"format": "pt"})
    made = mtpforge.graft(tinyglm("bf16"), target, out=tmp_path / "graft")
    check_index(made.path)
    assert (made.path / "model.safetensors").stat().st_ino == (target / "model.safetensors").stat().st_ino


@pytest.mark.slow
def test_draft_goes_in_as_it_was_built_and_gives_way_to_the_next(tinyglm, tmp_path):
    draft = mtpforge.build(tinyglm("awq-int4"), tinyglm("nvfp4"), out=tmp_path / "draft", check="off")
    made = mtpforge.graft(draft.path, tinyglm("awq-int4"), out=tmp_path / "graft", max_shard_bytes=200_000)
    assert digests(of_layer(tensors(made.path))) == digests(tensors(draft.path))
    assert "quantization_config" not in made.document["config"]["set"]
    assert sum(path.name.startswith("model-mtp-0000") for path in made.path.iterdir()) > 2
    again = mtpforge.graft(tinyglm("bf16"), made.path, out=tmp_path / "again")
    assert around(tensors(again.path)) == around(tensors(tinyglm("awq-int4")))
    assert {row[0] for row in of_layer(tensors(again.path)).values()} == {"model-mtp.safetensors"}


@pytest.mark.slow
def test_layer_of_more_experts_is_built_for_the_target_first(tinyglm, tmp_path):
    made = mtpforge.graft(tinyglm("bf16"), tinyglm("awq-int4-12experts"), out=tmp_path / "graft")
    assert (made.document["scheme"], made.document["layer"]["n_experts"]) == ("int4-g32-asym", 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graft"]


@pytest.mark.slow
def test_force_replaces_a_graft_and_nothing_else(tinyglm, tmp_path):
    out = tmp_path / "graft"
    first = mtpforge.graft(tinyglm("bf16"), tinyglm("awq-int4"), out=out)
    with pytest.raises(MtpforgeError, match="the output exists already"):
        mtpforge.graft(tinyglm("fp8"), tinyglm("awq-int4"), out=out)
    second = mtpforge.graft(tinyglm("fp8"), tinyglm("awq-int4"), out=out, force=True)
    assert first.document["scheme"] != second.document["scheme"]
    (out / "mtpforge-graft.json").unlink()
    with pytest.raises(MtpforgeError, match="the output exists and is no graft"):
        mtpforge.graft(tinyglm("fp8"), tinyglm("awq-int4"), out=out, force=True)


def only_layer(tinyglm, tmp_path):
    return mtpforge.extract(tinyglm("bf16"), out=tmp_path / "layer", check="off").path


def refusal(*args, **options):
    with pytest.raises(MtpforgeError) as caught:
        mtpforge.graft(*args, **options)
    return caught.value


@pytest.mark.slow
def test_target_that_is_a_draft_is_refused(tinyglm, tmp_path):
    layer = only_layer(tinyglm, tmp_path)
    error = refusal(tinyglm("bf16"), layer, out=tmp_path / "graft")
    assert error.fix == "name the checkpoint that is served: `--into CKPT`"


@pytest.mark.slow
def test_draft_that_the_target_cannot_state_is_refused_with_the_way_around(tinyglm, tmp_path):
    draft = mtpforge.build(tinyglm("awq-int4"), tinyglm("nvfp4"), out=tmp_path / "draft", check="off").path
    error = refusal(draft, tinyglm("fp8"), out=tmp_path / "graft")
    assert error.what == "this draft cannot go into this target as it is stored"
    assert "not INT4 g32 asymmetric" in error.why
    assert error.fix.startswith("name what it was made from: `mtpforge graft FOLDER/nvfp4 --into ")


@pytest.mark.slow
def test_draft_of_fewer_experts_is_refused(tinyglm, tmp_path):
    draft = mtpforge.build(tinyglm("awq-int4"), tinyglm("nvfp4"), out=tmp_path / "draft", experts=12, check="off").path
    error = refusal(draft, tinyglm("awq-int4"), out=tmp_path / "graft")
    assert "12 experts, the target serves 16" in error.why


def test_target_of_consolidated_files_is_refused(tinyglm, tmp_path):
    target = tmp_path / "target"
    shutil.copytree(tinyglm("awq-int4"), target)
    shutil.copy(target / "model-00001-of-00002.safetensors", target / "consolidated.safetensors")
    error = refusal(tinyglm("bf16"), target, out=tmp_path / "graft")
    assert "`consolidated.safetensors` would hide the layer" in error.what
    assert error.why == ENGINES["vllm"].hiding_files["consolidated*.safetensors"]
    assert not ENGINES["sglang"].hiding_files  # 0.5.23 skips such files, or reads them beside the others


def test_target_without_weights_is_refused(tinyglm, tmp_path):
    (tmp_path / "target").mkdir()
    shutil.copy(tinyglm("awq-int4") / "config.json", tmp_path / "target")
    error = refusal(tinyglm("bf16"), tmp_path / "target", out=tmp_path / "graft")
    assert "holds no weights to link to" in error.what


def test_output_inside_the_target_is_refused(tinyglm, tmp_path):
    target = tmp_path / "target"
    shutil.copytree(tinyglm("awq-int4"), target)
    before = state(target)
    assert "lies in the folder of the target" in refusal(tinyglm("bf16"), target, out=target / "graft").what
    assert state(target) == before


def test_file_system_that_allows_no_hard_link_is_named_with_the_other_ways(tinyglm, tmp_path, monkeypatch):
    def refuse(place, name, *, hard):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(name))

    monkeypatch.setattr(effects, "link", refuse)
    error = refusal(tinyglm("bf16"), tinyglm("awq-int4"), out=tmp_path / "graft")
    assert (error.fix, error.code) == ("`--link sym` makes symbolic links, `--link copy` copies", 5)
    assert not (tmp_path / "graft").exists()


def test_damaged_layer_is_found_before_the_graft_appears(tinyglm, tmp_path, monkeypatch):
    """One byte is written otherwise than it was read."""
    real, seen = effects.put, []

    def put(fd, data, offset):
        seen.append(len(data))
        real(fd, memoryview(bytes([data[0] ^ 64, *data[1:]])) if len(seen) == 40 else data, offset)

    monkeypatch.setattr(effects, "put", put)
    error = refusal(tinyglm("bf16"), tinyglm("awq-int4"), out=tmp_path / "graft")
    assert (error.what, error.code) == ("what was written reads back otherwise", 5)
    assert not (tmp_path / "graft").exists()


def test_delta_and_graft_of_it_are_the_graft(graft, tinyglm, tmp_path):
    whole = graft("bf16", "nvfp4")
    delta = mtpforge.delta(tinyglm("bf16"), tinyglm("nvfp4"), out=tmp_path / "delta")
    assert {path.name for path in delta.path.iterdir()} == {"mtpforge-delta.json", "model-mtp.safetensors"}
    made = mtpforge.graft(None, tinyglm("nvfp4"), delta=delta.path, out=tmp_path / "made", link="copy")
    assert files(made.path) == files(whole.path)


@pytest.fixture
def delta(tinyglm, tmp_path):
    return mtpforge.delta(tinyglm("bf16"), tinyglm("awq-int4"), out=tmp_path / "delta").path


def test_a_broken_record_is_named_with_its_folder(delta, tinyglm, tmp_path):
    (delta / "mtpforge-delta.json").write_text("{")
    error = refusal(None, tinyglm("awq-int4"), delta=delta, out=tmp_path / "graft")
    assert str(error.place) == str(delta / "mtpforge-delta.json")


def test_delta_is_refused_beside_another_revision(delta, tinyglm, tmp_path):
    target = tmp_path / "target"
    shutil.copytree(tinyglm("awq-int4"), target)
    mtpforge.graft(None, target, delta=delta, out=tmp_path / "graft")  # the same files elsewhere are the same revision
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"rope_theta": 1}))
    error = refusal(None, target, delta=delta, out=tmp_path / "other")
    assert "another revision, or files that were changed since" in error.why
    assert not (tmp_path / "other").exists()


def test_damaged_delta_is_refused(delta, tinyglm, tmp_path):
    weights = delta / "model-mtp.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    error = refusal(None, tinyglm("awq-int4"), delta=delta, out=tmp_path / "graft")
    assert error.what == "1 tensor of the delta changed since it was made"
    (delta / "mtpforge-delta.json").write_text("{}")
    assert "has schema None" in refusal(None, tinyglm("awq-int4"), delta=delta, out=tmp_path / "graft").what


def test_a_delta_that_changes_more_than_a_graft_does_is_refused(delta, tinyglm, tmp_path):
    """It may come from anybody: keys that run foreign code, another layer, files that engines read alone."""
    document, path = json.loads((delta / "mtpforge-delta.json").read_text()), delta / "mtpforge-delta.json"

    def refused():
        found = refusal(None, tinyglm("awq-int4"), delta=delta, out=tmp_path / "graft")
        assert not (tmp_path / "graft").exists()
        assert found.what == "this delta is none that a graft makes"
        return found.why

    for key, value in (
        ("auto_map", {"AutoModelForCausalLM": "evil/repo--m.X"}),
        ("rope_theta", 7),
        ("eos_token_id", 0),
    ):
        odd = json.loads(json.dumps(document))
        odd["config"]["set"][key] = value
        path.write_text(json.dumps(odd))
        assert "keys of config.json that no graft changes" in refused()
    path.write_text(json.dumps(document | {"layer": document["layer"] | {"number": 0}}))
    assert "it would replace layer 0" in refused()
    path.write_text(json.dumps(document))
    (delta / "model-mtp.safetensors").rename(delta / "consolidated.safetensors")
    assert "a graft writes no `consolidated.safetensors`" in refused()


def test_of_a_delta_only_licences_are_taken_beside_its_weights(delta, tinyglm, tmp_path):
    (delta / "mtp-x.py").write_text("raise SystemExit")
    (delta / "mtp-LICENSE").write_text("a licence")
    made = mtpforge.graft(None, tinyglm("awq-int4"), delta=delta, out=tmp_path / "graft")
    assert (made.path / "mtp-LICENSE").read_text() == "a licence"
    assert not (made.path / "mtp-x.py").exists()


def test_graft_takes_a_layer_or_a_delta(delta, tinyglm, tmp_path):
    for layer, given, options in ((None, None, {}), (tinyglm("bf16"), delta, {}), (None, delta, {"scheme": "bf16"})):
        assert refusal(layer, tinyglm("awq-int4"), delta=given, out=tmp_path / "graft", **options).code == 2


@pytest.mark.slow
def test_the_page_s_commands_run_in_their_order(tinyglm, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "grafts.md").read_text()
    monkeypatch.chdir(tmp_path)
    for typed in re.findall(r"^\$ mtpforge (.*)$", text, re.MULTILINE):
        line = typed
        for name, layout in (("AWQ-INT4", "awq-int4"), ("NVFP4", "nvfp4"), ("FP8", "fp8"), ("BF16", "bf16")):
            line = line.replace(f"org/GLM-5.2-{name}", str(tinyglm(layout)))
        line = line.replace("org/GLM-5.2-INT8Mix", str(tinyglm("int4-int8mix")))
        assert cli.main(shlex.split(line)) == 0, line
    assert files(tmp_path / "out" / "from-delta") == files(tmp_path / "out" / "with-fp8")
