"""GGUF as the source of a draft: from what llama.cpp's converter writes to a draft that verify accepts."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from checkpoint.lying import LyingCheckpoint
from drafts import failed
from gguf_files import Type, convert
from safetensors.torch import load_file
from slow_twins import layouts

from mtpforge import formats
from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.errors import MACHINE, MtpforgeError
from mtpforge.families import family_of
from mtpforge.planning import plan
from mtpforge.sourcing import stored_layer
from mtpforge.verifying import verify
from mtpforge.writing import preflight

P = "model.layers.3."
# name -> (types by what GGUF's names hold, how it is converted, how two modules are shown)
SOURCES = {
    "three parts, Q4_0 and Q8_0": (
        {"_exps": Type.Q4_0, "attn_k_b": Type.Q8_0, "attn": Type.Q5_1, "": Type.BF16},
        {"parts": 3},
        ("Q4_0", "Q5_1 in two parts"),
    ),
    "gate and up in one, kv_b in one": (
        {"_exps": Type.Q8_0, "attn": Type.Q4_1, "": Type.F16},
        {"halves": True, "split_kv": False},
        ("Q8_0", "Q4_1"),
    ),
    "plain numbers": ({"attn_k_b": Type.F16, "": Type.BF16}, {}, ("BF16", "F16 in two parts")),
}


@pytest.fixture(scope="module")
def source(tinyglm, tmp_path_factory):
    """name -> the file, and the values that its MTP layer must have, float32."""
    made = {}

    def write(name):
        if name not in made:
            kinds, how, _ = SOURCES[name]
            made[name] = convert(tinyglm("bf16"), tmp_path_factory.mktemp("gguf") / "tiny.gguf", kinds, **how)
        return made[name]

    return write


def held(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def by_origin(source, target):
    return {"source": source, "target": target}


@pytest.mark.parametrize("name", list(SOURCES)[:2])
def test_a_dense_draft_holds_the_values_that_the_package_decodes(source, tinyglm, tmp_path, name):
    made = source(name)
    opened, target = open_checkpoint(str(made.first)), open_checkpoint(str(tinyglm("bf16")))
    stored = stored_layer(opened, family_of(opened.config)).modules
    shown = [formats.label(stored[m].quantization) for m in ("mlp.experts.3.up_proj", "self_attn.kv_b_proj")]
    assert tuple(shown) == SOURCES[name][2]
    draft = build(plan(opened, target), by_origin(opened, target), tmp_path / "draft")
    written = held(draft.path)
    assert written.keys() == made.values.keys()
    for key, tensor in written.items():
        assert tensor.dtype == (torch.float32 if key.endswith("e_score_correction_bias") else torch.bfloat16)
        assert torch.equal(tensor, made.values[key].to(tensor.dtype)), key
    assert failed(verify(draft.path, target, opened)) == {}


def test_an_int4_draft_is_within_its_rounding_of_the_source(source, tinyglm, tmp_path):
    made = source("three parts, Q4_0 and Q8_0")
    opened, target = open_checkpoint(str(made.first.parent)), open_checkpoint(str(tinyglm("awq-int4")))
    draft = build(plan(opened, target), by_origin(opened, target), tmp_path / "draft")
    assert failed(verify(draft.path, target, opened)) == {}
    written, decoded = held(draft.path), layouts.weights(draft.path)
    for module in (f"{P}mlp.experts.3.up_proj", f"{P}self_attn.kv_b_proj"):
        steps = written[f"{module}.weight_scale"].float().repeat_interleave(32, 1)
        off = (decoded[f"{module}.weight"] - made.values[f"{module}.weight"]).abs()
        assert bool((off <= steps * (0.5 + 15 / 256 + 0.05)).all())  # 0.05: BF16 of the decoded values
    told = json.loads((draft.path / "mtpforge.json").read_text())
    assert told["source"]["id"] == opened.identity
    assert told["source"]["id"].startswith("tiny-00001-of-00003.gguf#")
    (reference,) = [check for check in told["checks"] if check["name"] == "reference"]
    assert reference["verdict"] == "not checked"
    assert "GGUF, decoded by the gguf package itself" in reference["detail"]


def test_of_a_pruned_draft_only_the_experts_that_stay_are_read(source, tinyglm, tmp_path):
    made = source("three parts, Q4_0 and Q8_0")
    kept = (0, 2, 3, 5, 6, 7, 8, 9, 11, 12, 14, 15)
    opened = open_checkpoint(str(made.first))
    target = open_checkpoint(str(tinyglm("awq-int4-12experts")))
    decided = plan(opened, target, kept=kept)
    read = {ref.name for step in decided.steps for ref in step.reads}
    numbers = {int(name.split(".experts.")[1].split(".")[0]) for name in read if ".experts." in name}
    assert numbers == set(kept)
    spans = []
    fill = opened.read

    def watched(ref, into):
        spans.append((ref.file, ref.start, ref.stop))
        fill(ref, into)

    opened.read = watched
    draft = build(decided, by_origin(opened, target), tmp_path / "draft")
    gone = opened.locate(n for n in opened.names if n.startswith((f"{P}mlp.experts.1.", f"{P}mlp.experts.13.")))
    assert len(gone) == 6
    for ref in gone.values():
        touching = [s for s in spans if s[0] == ref.file and s[1] < ref.stop and s[2] > ref.start]
        assert not touching, ref.name
    decoded = layouts.weights(draft.path)
    up = decoded[f"{P}mlp.experts.10.up_proj.weight"]
    off = {n: float((made.values[f"{P}mlp.experts.{n}.up_proj.weight"] - up).norm()) for n in range(16)}
    assert min(off, key=off.get) == 14
    router = made.values[f"{P}mlp.gate.weight"][list(kept)].bfloat16()
    assert torch.equal(held(draft.path)[f"{P}mlp.gate.weight"], router)


def test_without_the_package_a_build_is_refused_before_it_starts(source, tinyglm, tmp_path, monkeypatch):
    opened = open_checkpoint(str(source("three parts, Q4_0 and Q8_0").first))
    target = open_checkpoint(str(tinyglm("awq-int4")))
    decided = plan(opened, target)
    find = importlib.util.find_spec
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(MtpforgeError) as caught:
        preflight.preflight(decided, by_origin(opened, target), tmp_path / "draft")
    assert (caught.value.fix, caught.value.code) == ("`pip install 'mtpforge[gguf]'`", MACHINE)
    plain = open_checkpoint(str(source("plain numbers").first))
    preflight.preflight(plan(plain, target), by_origin(plain, target), tmp_path / "draft")


def test_without_the_package_decoding_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    q = formats.gguf.quantization("gguf", formats.gguf.CODED["Q8_0"])
    with pytest.raises(MtpforgeError) as caught:
        formats.FORMATS["gguf"].decode({"weight_q8_0": torch.zeros(2, 34, dtype=torch.uint8)}, (2, 32), q)
    assert (caught.value.fix, caught.value.code) == ("`pip install 'mtpforge[gguf]'`", MACHINE)


def test_a_conversion_without_the_layer_says_so(tinyglm, tmp_path):
    made = convert(tinyglm("bf16"), tmp_path / "x.gguf", {"": Type.Q8_0}, no_mtp=True)
    opened, target = open_checkpoint(str(made.first)), open_checkpoint(str(tinyglm("awq-int4")))
    with pytest.raises(MtpforgeError) as caught:
        plan(opened, target)
    assert caught.value.what.endswith("holds no MTP layer")
    assert "`--no-mtp`" in caught.value.why


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("self_attn.kv_b_proj.k_b_q8_0", "`self_attn.kv_b_proj` of the MTP layer is stored in no known way"),
        ("self_attn.o_proj.weight_q5_1", "`self_attn.o_proj` of the MTP layer is missing"),
        ("mlp.gate.e_score_correction_bias", "`mlp.gate.e_score_correction_bias` of the MTP layer is missing"),
        ("mlp.experts.15.down_proj.weight_q4_0", "`mlp.experts.15.down_proj` of the MTP layer is missing"),
    ],
)
def test_what_is_missing_is_named(source, tinyglm, name, what):
    opened = open_checkpoint(str(source("three parts, Q4_0 and Q8_0").first))
    assert P + name in opened.names
    with pytest.raises(MtpforgeError) as caught:
        plan(LyingCheckpoint(opened, hidden={P + name}), open_checkpoint(str(tinyglm("awq-int4"))))
    assert caught.value.what == what


def test_a_file_of_another_model_is_refused_by_its_sizes(tinyglm, tmp_path):
    keys = {"glm-dsa.embedding_length": 256, "glm-dsa.attention.value_length_mla": 64}
    made = convert(tinyglm("bf16"), tmp_path / "x.gguf", {"": Type.Q8_0}, keys=keys)
    opened, target = open_checkpoint(str(made.first)), open_checkpoint(str(tinyglm("awq-int4")))
    with pytest.raises(MtpforgeError) as caught:
        plan(opened, target)
    assert "are not the same model: `hidden_size` 256 against 128, `v_head_dim` 64 against 32" in caught.value.what
