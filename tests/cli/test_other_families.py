"""GLM-4.x as its user meets it: what is shown, what is asked for, what cannot be done."""

from __future__ import annotations

import json
import shutil

import glm4_moe
import pytest
from drafts import reconfigured
from nextn.calibration import captured, write
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.source_choice import choose_source

BASES = ("zai-org/GLM-4.7", "zai-org/GLM-4.6", "zai-org/GLM-4.5", "zai-org/GLM-4.5-Air")
UNRUN = (
    "error: layers of glm4_moe cannot be run here\n"
    "where: {config}\n"
    "cause: inputs, scores and gptq need transformers' modules, which are laid out for glm_moe_dsa only\n"
    " hint: build without: `--prune-by bias` chooses experts, `--scales mse` finds scales, neither runs a layer\n"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return glm4_moe.write(tmp_path_factory.mktemp("glm4") / "source")


@pytest.fixture
def target(source, tmp_path):
    return glm4_moe.target(tmp_path / "target", source, glm4_moe.int4())


def test_extract_writes_the_layer_as_it_is_stored(run, source, tmp_path):
    assert run("extract", "--source", source, "-o", tmp_path / "layer", "-q").code == 0
    (file,) = (tmp_path / "layer").glob("*.safetensors")
    with safe_open(source / "model.safetensors", "pt") as stored, safe_open(file, "pt") as written:
        wanted = {n for n in stored.keys() if n.startswith("model.layers.2.")}  # noqa: SIM118 -- no mapping
        wanted -= {"model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight"}
        assert set(written.keys()) == wanted
        assert all(written.get_tensor(n).equal(stored.get_tensor(n)) for n in wanted)


def test_inspect_and_plan_of_a_release_as_published(run, census_folder, release_config, tmp_path):
    source = census_folder("glm-4.5", "target-glm-4.5")
    shown = run("inspect", source)
    assert shown.code == 0
    assert "glm4_moe, 92 layers, 160 experts, quantization: none" in shown.out
    assert "layer 92, 160 experts, 502 tensors" in shown.out
    target = tmp_path / "int4"
    target.mkdir()
    block = {"quantization_config": glm4_moe.int4()}
    (target / "config.json").write_text(json.dumps(release_config("target-glm-4.5") | block))
    assert "Next: mtpforge build --target" in (said := run("inspect", target).err)
    assert said.rstrip().endswith("--source ORG/NAME")
    planned = run("build", "--target", target, "--source", source, "-o", tmp_path / "d", "--dry-run", "--memory", "4GB")
    assert planned.code == 0
    assert "  attention          4   BF16               INT4 g32   encoded" in planned.out
    # Matrices of 4 bits and a BF16 scale for 32; eh_proj and router in BF16; norms, biases, the F32 correction bias.
    n_codes = 480 * 1536 * 5120 + 3 * 1536 * 5120 + 2 * 12288 * 5120 + 2 * 1024 * 5120
    dense = 2 * (5120 * 10240 + 160 * 5120 + 5 * 5120 + 12288 + 2 * 1024 + 2 * 128) + 4 * 160
    n_shapes = 480 + 3 + 4
    assert f"write {(n_codes // 2 + n_codes // 16 + 16 * n_shapes + dense) / 1e9:.2f} GB" in planned.out


def test_without_a_source_one_is_asked_for_and_why(run, target):
    ran = run("build", "--target", target, "--dry-run")
    assert ran.code == 3
    assert ran.err == (
        f"error: no source for the MTP layer of {target} was found\n"
        "cause: no name, card or config says which GLM the target is: heads of several fit its shape, and that of"
        " another version drafts badly\n"
        " hint: name it, e.g. `--source zai-org/GLM-4.7` for GLM-4.7, `--source zai-org/GLM-4.6` for GLM-4.6, `--source"
        " zai-org/GLM-4.5` for GLM-4.5, `--source zai-org/GLM-4.5-Air` for GLM-4.5-Air\n"
    )


def test_only_the_card_names_a_base(source, target):
    asked = []

    def opened(name):
        asked.append(name)
        return open_checkpoint(str(source))

    def choose():
        held = open_checkpoint(str(target))
        return choose_source(held, family_of(held.config), ENGINES["vllm"], opened)

    with pytest.raises(MtpforgeError, match="no source for the MTP layer"):
        choose()
    assert asked == []
    (target / "README.md").write_text(f"---\nbase_model: {BASES[1]}\n---\n")
    assert choose().reason == "base model of the target's card"
    assert choose().alternatives == ()
    assert set(asked) == {BASES[1]}


@pytest.mark.parametrize(
    ("name", "base"), [("GLM-4.6-AWQ", BASES[1]), ("glm-4.5-air", BASES[3]), ("GLM-4.7", BASES[0])]
)
def test_the_name_of_the_target_names_its_base(source, tmp_path, name, base):
    asked = []

    def opened(name):
        asked.append(name)
        return open_checkpoint(str(source))

    held = open_checkpoint(str(glm4_moe.target(tmp_path / name, source, glm4_moe.int4())))
    assert choose_source(held, family_of(held.config), ENGINES["vllm"], opened).alternatives == ()
    assert asked == [base]


def test_layer_of_the_target_itself_needs_nobody_and_names_no_other(source, tmp_path):
    held = open_checkpoint(str(shutil.copytree(source, tmp_path / "whole")))
    choice = choose_source(held, family_of(held.config), ENGINES["vllm"], open_checkpoint)
    assert (choice.self_sufficient, choice.alternatives) == (True, ())


RUNS = {
    "gptq": ("build", "--scales", "gptq"),
    "reap": ("build", "--experts", "2", "--prune-by", "reap"),
    "inputs": ("build", "--experts", "2", "--inputs", "inputs.safetensors"),
    "prune-plan": ("prune-plan", "--experts", "2", "--inputs", "inputs.safetensors"),
}


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_whatever_runs_the_layer_is_refused_by_name(run, in_folder, tinyglm, source, target, words):
    write(in_folder / "inputs.safetensors", captured(tinyglm("bf16")))
    command, *rest = words
    ran = run(command, "--target", target, "--source", source, *rest)
    assert ran.code == 3
    assert ran.err.endswith(UNRUN.format(config=target / "config.json"))


def test_extract_by_gptq_and_capture_are_refused_by_name(run, in_folder, source):
    (in_folder / "text").write_text("the cat sat on the mat\n")
    ran = run("capture", "--target", source, "--text", "text", "-o", "inputs")
    assert (ran.code, ran.err) == (3, UNRUN.format(config=source / "config.json"))
    ran = run("extract", "--source", source, "--scheme", "int4-g32-asym", "--scales", "gptq", "-o", "layer")
    assert ran.code == 3
    assert ran.err.endswith(UNRUN.format(config=source / "config.json"))


@pytest.mark.parametrize(("way", "n_served"), [(("--prune-by", "bias"), 2), (("--scales", "mse"), glm4_moe.N_EXPERTS)])
def test_what_the_refusal_names_instead_works(run, in_folder, source, target, way, n_served):
    served = {"n_routed_experts": n_served, "name_or_path": "served"}
    reconfigured(target, in_folder / "served", lambda config: config.update(served))
    ran = run("build", "--target", "served", "--source", source, "-o", "draft", *way)
    assert ran.code == 0, ran.err
    assert json.loads((in_folder / "draft" / "config.json").read_text())["n_routed_experts"] == n_served


FEWER = (
    "error: 2 experts are to be kept, the target has 4\n"
    "where: {target}\n"
    "cause: vLLM sizes this layer by the target's config: it would stop at the router, whose rows are fewer\n"
    " hint: keep 4 of them: `--experts match`; `mtpforge prune-plan` shows which\n"
)


COUNTED = {
    "build": ("build", "--dry-run", "--experts", "2"),
    "list": ("build", "--dry-run", "--keep-experts", "kept.json"),
    "prune-plan": ("prune-plan", "--experts", "2"),
}


@pytest.mark.parametrize("words", COUNTED.values(), ids=COUNTED)
def test_fewer_experts_than_the_target_are_refused_at_plan_time(run, in_folder, source, target, words):
    (in_folder / "kept.json").write_text("[0, 3]")
    command, *rest = words
    ran = run(command, "--target", target, "--source", source, *rest)
    assert ran.code == 3
    assert ran.err.endswith(FEWER.format(target=target))


def test_source_with_fewer_experts_than_the_target_is_refused_by_name(run, in_folder, target):
    small = glm4_moe.write(in_folder / "small", n_routed_experts=2)
    ran = run("build", "--target", target, "--source", small, "--dry-run")
    assert ran.code == 3
    assert "error: the layer has 2 experts, the target 4\n" in ran.err
    assert " hint: name a source that has 4, e.g. `--source zai-org/GLM-4.7`" in ran.err


def test_inspect_says_what_this_class_does_without_its_layer(run, source, tmp_path):
    bare = glm4_moe.target(tmp_path / "bare", source, glm4_moe.int4())
    held = load_file(source / "model.safetensors")
    save_file({n: t for n, t in held.items() if not n.startswith("model.layers.2.")}, bare / "model.safetensors")
    assert "else it drafts from weights never loaded" in run("inspect", bare).out
