"""Targets that the command restates, put to vLLM itself: its loader, its parser, its quantization configs.

Every draft here is of another scheme than its target asks for. Beside the target alone vLLM must refuse it or miss
parts of it; told by `--hf-overrides`, it must take the draft whole, and build every main layer as before.
One interpreter answers all of it: `make test-engines` names it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import glm4_moe
import glm5_next
import pytest

import mtpforge
from mtpforge import scheme as schemes
from mtpforge.checkpoint import open_checkpoint
from mtpforge.cli import main
from mtpforge.engines import ENGINES, overlay
from mtpforge.engines.expected import expected
from mtpforge.families import family_of

PYTHON = os.environ.get("MTPFORGE_TEST_ENGINE_PYTHON")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("overlays"),
    pytest.mark.skipif(not PYTHON, reason="MTPFORGE_TEST_ENGINE_PYTHON names no interpreter with vLLM"),
]
LAYER = "model.layers.3."
# Questions of vLLM about an attention, its cache among them, and about what lies around all layers.
ASKED = {
    "deepseek_v3": (5, 2),
    "deepseek_v32": (6, 2),
    "glm4_moe": (3, 1),
    "glm4_moe_lite": (5, 2),
    "glm5_next": (0, 1),
    "glm_moe_dsa": (6, 2),
}
VLLM = ENGINES["vllm"]

# Schemes that are no presets: what stands in the place of a preset's rule for its quantized modules.
SCHEMES = {
    "fp8-static": (
        "nvfp4",
        'format = "modelopt_nvfp4"\nbits = 4\nstrategy = "group"\ngroup_size = 16\nscale_dtype = "F8_E4M3"',
        'format = "fp8_scaled"\nbits = 8\nstrategy = "tensor"\nscale_dtype = "F32"',
    ),
    "fp8-channel": (
        "fp8-block128",
        'format = "fp8_block"\nbits = 8\nstrategy = "block"\nblock = [128, 128]\nscale_dtype = "F32"',
        'format = "fp8_scaled"\nbits = 8\nstrategy = "channel"\nscale_dtype = "BF16"',
    ),
}


def modelopt_excluding(block):
    block["ignore"].append(f"{LAYER[:-1]}*")


def modelopt_mixed(block):
    experts = {f"model.layers.{i}.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16} for i in (1, 2)}
    block |= {"quant_algo": "MIXED_PRECISION", "quantized_layers": experts}
    del block["config_groups"]


def ignoring(block):
    block["ignore"].append("re:model[.]layers[.]3[.].*")


def fp8_excluding(block):
    names = ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.q_b_proj", "self_attn.kv_b_proj",
             "self_attn.o_proj", "self_attn.indexer.wq_b", "self_attn.indexer.wk", "mlp.shared_experts.gate_proj",
             "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj", "mlp.experts")  # fmt: skip
    block["modules_to_not_convert"] += [LAYER + name for name in names]


# name -> layout of the tiny model, and how its block is changed
TARGETS = {
    "nvfp4 without the layer": ("nvfp4", modelopt_excluding),
    "mixed NVFP4": ("nvfp4", modelopt_mixed),
    "int4 without the layer": ("awq-int4", ignoring),
    "fp8 without the layer": ("fp8", fp8_excluding),
    **{layout: (layout, None) for layout in ("nvfp4", "awq-int4", "fp8", "int4-int8mix", "bf16")},
}
# target, scheme, what vLLM says of the draft beside the target as it stands (of names of experts, their last part); an
# FP8 target's loader takes BF16 weights as if they were FP8's and waits for no scale: it does not refuse them
PAIRS = (
    ("nvfp4 without the layer", "nvfp4", "KeyError: 'w2_input_scale'"),
    ("nvfp4 without the layer", "nvfp4-w4a16", "KeyError: 'w2_weight_scale_2'"),
    ("nvfp4 without the layer", "fp8-static", "KeyError: 'w2_input_scale'"),
    ("mixed NVFP4", "nvfp4", "KeyError: 'w2_input_scale'"),
    ("mixed NVFP4", "nvfp4-w4a16", "KeyError: 'w2_weight_scale_2'"),
    ("mixed NVFP4", "fp8-static", "KeyError: 'w2_input_scale'"),
    ("int4 without the layer", "int4-g32-asym", "KeyError: 'w2_weight_shape'"),
    ("int4 without the layer", "int4-g128-sym", "KeyError: 'w2_weight_shape'"),
    ("int4 without the layer", "int8-channel", "KeyError: 'w2_weight_shape'"),
    ("int4 without the layer", "fp8-block128", "KeyError: 'w2_weight_scale'"),
    ("int4 without the layer", "fp8-channel", "KeyError: 'w2_weight_scale'"),
    ("int4 without the layer", "nvfp4", "KeyError: 'w2_input_global_scale'"),
    ("fp8 without the layer", "fp8-block128", "KeyError: 'w2_weight_scale_inv'"),
    ("int4-int8mix", "int4-g128-sym", "KeyError: 'model.layers.3.mtp_block.self_attn.indexer.wq_b.weight_shape'"),
    ("int4-int8mix", "nvfp4", "KeyError: 'w2_input_global_scale'"),
    ("bf16", "int4-g128-sym", "KeyError: 'w2_weight_shape'"),
    ("bf16", "nvfp4", "KeyError: 'w2_input_global_scale'"),
    ("nvfp4", "bf16", "The size of tensor a (64) must match the size of tensor b (128)"),
    ("awq-int4", "bf16", "KeyError: 'w2_weight'"),
    ("fp8", "bf16", "kv_b_proj.weight_scale_inv [2, 1]: nothing loaded"),
    ("int4-int8mix", "bf16", "KeyError: 'w2_weight'"),
)
# At full size: a published target whose block leaves the layer out, a preset, tensors of the draft.
PUBLISHED = (
    ("target-nvfp4-nvidia", "nvfp4", 3095),
    ("target-awq-int4-mtp-ignored", "int4-g32-asym", 3122),
    ("target-awq-int4-mtp-ignored", "nvfp4", 3095),
)


def scheme_file(name, folder):
    """The name of a preset, or a file of one of SCHEMES."""
    if name not in SCHEMES:
        return name
    preset, was, is_now = SCHEMES[name]
    text = (ROOT / "schemes" / f"{preset}.toml").read_text()
    assert was in text
    (folder / f"{name}.toml").write_text(text.replace(was, is_now))
    return str(folder / f"{name}.toml")


def target_folder(name, tinyglm, folder):
    """A target of which only config.json is known."""
    layout, change = TARGETS[name]
    config = json.loads((tinyglm(layout) / "config.json").read_text())
    if change is not None:
        change(config["quantization_config"])
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def headers_alone(config, preset, folder):
    """A draft of which only config and headers exist."""
    from target_blocks import write

    target, family = open_checkpoint(str(config)), family_of(json.loads((config / "config.json").read_text()))
    told, scheme = overlay.beside(target, VLLM, schemes.load(preset))
    draft = VLLM.draft_config(told, told.config, family, scheme, 256)
    write(folder, draft, expected(scheme, family, draft, 78, 256))
    return told.config["quantization_config"]


def overrides_of(argv):
    return json.loads(argv[argv.index("--hf-overrides") + 1])


def wrapped(config):
    """Blocks of other methods in the config of a model below a wrapper: its layers by their names on disk."""
    main, layer = "model.language_model.layers.", "model.language_model.layers.45."
    some = [f"{main}0.mlp.down_proj", f"{main}7.mlp.shared_experts.gate_proj", f"{main}7.mlp.shared_experts.up_proj"]
    mixed = {f"{main}{i}.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16} for i in range(3, 45)}
    mixed |= {f"{name}_proj": {"quant_algo": "FP8"} for i in range(3) for name in
              (f"{main}{i}.mlp.gate", f"{main}{i}.mlp.up", f"{main}{i}.mlp.down")}  # fmt: skip
    modelopt = glm5_next.modelopt(*some, f"{main}9*", f"{layer}*", "*layers.45.*")
    blocks = {
        "ModelOpt": modelopt,
        "ModelOpt, mixed": {**modelopt, "quant_algo": "MIXED_PRECISION", "quantized_layers": mixed},
        "NVFP4": glm5_next.nvfp4(*some, f"re:{main}9[.].*", "re:.*layers[.]45[.].*"),
        "NVFP4, all": glm5_next.nvfp4(),
        "FP8, excluded": glm4_moe.fp8_blocks() | {"modules_to_not_convert": [*some, "model.layers.45.mlp.experts"]},
        "Quark": glm5_next.quark(*some, "re:model[.]layers[.]45[.].*"),
        "Quark, of quantized activations": glm5_next.quark(*some, "re:model[.]layers[.]45[.].*", dynamic=True),
        "unquantized": None,
    }
    bare = {key: value for key, value in config.items() if key != "quantization_config"}
    return {
        f"wrapped {name}": bare | ({"quantization_config": block} if block else {}) for name, block in blocks.items()
    }


@pytest.fixture(scope="module")
def asked(tinyglm, config_folder, tmp_path_factory):
    """Every request, by pair where it is one."""
    home = tmp_path_factory.mktemp("overlays")
    pairs, commands = {}, {}
    for i, (name, wanted, _) in enumerate(PAIRS):
        target = target_folder(name, tinyglm, home / f"target {name}")
        made = mtpforge.build(
            target, tinyglm("nvfp4"), out=home / f"draft-{i}", scheme=scheme_file(wanted, home), check="off"
        )
        argv = mtpforge.serve_command(made.path, target)
        commands[name, wanted] = argv
        pairs[name, wanted] = [str(target), str(made.path), overrides_of(argv)]
    for i, (name, preset, _) in enumerate(PUBLISHED):
        target = config_folder(name)
        block = headers_alone(target, preset, home / f"full-{i}")
        pairs[name, preset] = [str(target), str(home / f"full-{i}"), {"quantization_config": block}]
    configs = {f.name.removesuffix(".config.json"): f for f in (ROOT / "tests/data/configs").glob("target-*")}
    # Of its own keys and values vLLM reads the scales under mixed precision too; of GLM-5.2's latent vectors not.
    modelopt = json.loads(configs["target-nvfp4-nvidia"].read_text())["quantization_config"]
    assert modelopt["kv_cache_scheme"]
    block = modelopt | {"ignore": ["lm_head", "*self_attn*", "model.layers.92*"]}
    with_scales = json.loads(configs["target-glm-4.5"].read_text()) | {"quantization_config": block}
    published = {name: json.loads(f.read_text()) for name, f in sorted(configs.items())}
    return {
        "pairs": pairs,
        "commands": commands,
        "restated": published
        | wrapped(published["target-glm-5.3-flash-fp8"])
        | {"scales of the KV cache": with_scales},
        "schemes": [*schemes.names(), *(scheme_file(name, home) for name in SCHEMES)],
    }


@pytest.fixture(scope="module")
def told(asked):
    """What vLLM answers, by pair and by target."""
    pairs = list(asked["pairs"].values())
    alone = [[target, draft, {}] for target, draft, _ in pairs]
    requests = asked | {"pairs": pairs + alone, "commands": [argv[2:] for argv in asked["commands"].values()]}
    done = subprocess.run(
        [PYTHON, str(HERE / "vllm_overlays.py")],
        input=json.dumps(requests),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout[done.stdout.index('{"pairs"') :])
    both = answers["pairs"]
    return answers | {
        "with": dict(zip(asked["pairs"], both[: len(pairs)], strict=True)),
        "alone": dict(zip(asked["pairs"], both[len(pairs) :], strict=True)),
        "commands": dict(zip(asked["commands"], answers["commands"], strict=True)),
    }


@pytest.mark.parametrize(("target", "wanted", "words"), PAIRS)
def test_draft_is_refused_alone_and_taken_whole_as_the_command_tells(told, target, wanted, words):
    refused, wrong, _ = told["alone"][target, wanted]
    said = refused or wrong[0]
    assert words in said.replace(f"{LAYER}mtp_block.mlp.experts.routed_experts.", "")
    refused, wrong, _ = told["with"][target, wanted]
    assert (refused, wrong) == ("", [])


@pytest.mark.parametrize(("target", "preset", "n_tensors"), PUBLISHED)
def test_published_target_that_leaves_the_layer_dense_takes_a_full_size_draft(told, target, preset, n_tensors):
    refused, _, _ = told["alone"][target, preset]
    assert "load_weights" in refused
    assert "KeyError: 'model.layers.78.mtp_block." in refused
    assert told["with"][target, preset] == ["", [], n_tensors]


@pytest.mark.parametrize(("target", "wanted"), [pair[:2] for pair in PAIRS])
def test_block_in_the_command_is_the_one_in_vllms_config(asked, told, target, wanted):
    block = overrides_of(asked["commands"][target, wanted])["quantization_config"]
    assert told["commands"][target, wanted] == block


def test_main_layers_of_every_published_target_are_built_as_before(asked, told):
    found = told["restated"]
    different = {(name, wanted): d for name, per in found.items() for wanted, (d, _) in per.items() if d}
    assert different == {}
    for name, config in asked["restated"].items():
        text = config.get("text_config", config)
        n_layers, n_dense = text["num_hidden_layers"], text["first_k_dense_replace"]
        of_attention, around = ASKED[config["model_type"]]
        n_asked = n_layers * of_attention + n_dense * 2 + (n_layers - n_dense) * 3 + around
        assert {n for _, n in found[name].values()} <= {n_asked}
    unstated = {name for name, per in found.items() if not per}
    assert unstated == {"target-w4afp8"}
    of_other_methods = {"awq-int4-g128", "gptq-int4-g128", "w4afp8"}  # compressed-tensors has no words for them
    assert of_other_methods < set(asked["schemes"])
    assert len(found["target-awq-int4-mtp-ignored"]) == len(set(asked["schemes"]) - of_other_methods) - 1


def test_validate_asks_vllm_about_the_target_as_the_command_tells(asked, capsys):
    target, draft, _ = asked["pairs"]["nvfp4 without the layer", "nvfp4"]
    code = main(["validate", draft, "--target", target, "--engine-python", PYTHON])
    assert code == 0, capsys.readouterr().err
    assert "engine loads the draft" in capsys.readouterr().out
