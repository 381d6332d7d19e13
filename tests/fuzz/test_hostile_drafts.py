"""Drafts that were damaged: `verify` with the source must notice, or what was damaged has no weight."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from fuzz import oracle, tiny
from fuzz.bounds import cases, outcome
from fuzz.mutating import mutated, mutations
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mtpforge.building import build
from mtpforge.checkpoint import open_checkpoint
from mtpforge.planning import plan
from mtpforge.report import Report
from mtpforge.verifying import verify

P = tiny.PREFIX
WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "mtpforge.json"
KINDS = {"int4": "bf16", "none": "bf16", "nvfp4": "bf16", "fp8-blocks": "fp8_block", "modelopt": "modelopt_nvfp4"}
# What vLLM reads from a draft's own config (models/deepseek_v32/nvidia/mtp.py, config/speculative.py, 0.33.0).
READ = frozenset(tiny.CONFIG) - {"dtype", "architectures", "max_position_embeddings"} | {
    "num_experts",
    "num_local_experts",
}

# What the config class takes for a key that is absent (transformers 5.20, GlmMoeDsaConfig); null is another matter.
DEFAULTS = {"norm_topk_prob": True, "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-05, "hidden_act": "silu",
            "moe_layer_freq": 1, "routed_scaling_factor": 2.5, "num_experts_per_tok": 8}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, source, target):
    """By name of the target: a good draft's folder, target and source."""
    home, made = tmp_path_factory.mktemp("drafts"), {}

    def pair(name):
        if name not in made:
            ours, theirs = open_checkpoint(str(source(KINDS[name]))), open_checkpoint(str(target(name)))
            build(plan(ours, theirs), {"source": ours, "target": theirs}, home / name, check="off", workers=1)
            made[name] = (home / name, theirs, ours)
        return made[name]

    return pair


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "draft"


def copied(draft, to, *, manifest):
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(draft, to)
    if not manifest:
        (to / MANIFEST).unlink()
    return to


def accepted(path, target, source):
    told = outcome(lambda: verify(path, target, source))
    return isinstance(told, Report) and told.ok


@cases(100)
@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(["header", "data", "data", "data", CONFIG, MANIFEST]),
    st.integers(0, 10**7),
)
def test_one_flipped_bit_is_noticed_or_changes_no_value(pairs, scratch, kind, where, bit):
    draft, target, source = pairs(kind)
    file = where if where.endswith(".json") else WEIGHTS
    path = copied(draft, scratch, manifest=True)
    flip(path / file, *stretch(path / file, where), bit)
    if accepted(path, target, source):
        same_values(load_file(draft / WEIGHTS), load_file(path / WEIGHTS))
        same_config(draft, path)


@cases(70)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 10**7))
def test_one_flipped_bit_of_a_draft_without_a_manifest_is_noticed_or_within_rounding(pairs, scratch, kind, bit):
    draft, target, source = pairs(kind)
    path = copied(draft, scratch, manifest=False)
    flip(path / WEIGHTS, *stretch(path / WEIGHTS, "data"), bit)
    if not accepted(path, target, source):
        return
    before, after, given_ = load_file(draft / WEIGHTS), load_file(path / WEIGHTS), tiny.tensors(KINDS[kind])
    for module, shape in tiny.MATRICES.items():
        parts = oracle.parts_of(after, P + module)
        wanted = oracle.decoded(oracle.parts_of(given_, P + module), shape)
        assert oracle.rounded_from(parts, wanted), module
    for name in (n for n in before if "norm" in n or "bias" in n):
        assert torch.equal(before[name], after[name]), name


@cases(60)
@given(st.sampled_from(sorted(KINDS)), st.sampled_from([CONFIG, MANIFEST]), mutations(most=2))
@example("none", MANIFEST, [((0,), "bury", 250)])
def test_a_draft_whose_documents_lie_is_judged_without_a_fall(pairs, scratch, kind, file, changes):
    draft, target, source = pairs(kind)
    path = copied(draft, scratch, manifest=True)
    text = mutated(json.loads((path / file).read_text()), changes)
    (path / file).write_bytes(text.encode("utf-8", "surrogatepass"))
    if accepted(path, target, source):
        same_config(draft, path)


@pytest.mark.parametrize("key", sorted(DEFAULTS))
def test_null_in_a_drafts_config_is_not_what_an_absent_key_is(pairs, scratch, key):
    """The engine is given None, and `norm_topk_prob` None is as good as false."""
    draft, target, source = pairs("none")
    path = copied(draft, scratch, manifest=True)
    config = json.loads((path / CONFIG).read_text())
    assert config[key] is not None
    (path / CONFIG).write_text(json.dumps({**config, key: None}))
    assert not accepted(path, target, source)


def stretch(path, where):
    """Bytes [first, last) that the flip lies in."""
    whole = path.stat().st_size
    if where.endswith(".json"):
        return 0, whole
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
    return (0, data) if where == "header" else (data, whole)


def flip(path, first, last, bit):
    raw = bytearray(path.read_bytes())
    raw[first + bit // 8 % (last - first)] ^= 1 << bit % 8
    assert bytes(raw) != path.read_bytes(), "the change changed nothing"
    path.write_bytes(raw)


def same_values(before, after):
    """The same names, and numbers that compare equal: a zero may have lost its sign, padding may hold anything."""
    assert before.keys() == after.keys()
    for module, shape in tiny.MATRICES.items():
        ours, theirs = (oracle.decoded(oracle.parts_of(tensors, P + module), shape) for tensors in (before, after))
        assert (ours == theirs).all(), module
    for name in (n for n in before if "norm" in n or "bias" in n or "input" in n):
        assert torch.equal(before[name], after[name]), name


def same_config(draft, path):
    before, after = (taken(json.loads((folder / CONFIG).read_text())) for folder in (draft, path))
    differing = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert not differing & READ, differing & READ


def taken(config):
    """The config as the engine's config class completes it."""
    rope = config.get("rope_parameters")
    return {
        **DEFAULTS,
        **config,
        "rope_parameters": {"rope_type": "default", **rope} if isinstance(rope, dict) else rope,
    }
