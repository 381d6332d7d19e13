"""inspect(): from config, index and headers alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drafts import recast, reconfigured, unpruned
from safetensors.torch import save_file

from mtpforge.checkpoint import open_checkpoint
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.inspecting import inspect
from mtpforge.source_choice import choose_source

HEAVY = ("torch", "transformers", "compressed_tensors", "modelopt")


def report_of(folder):
    return inspect(open_checkpoint(str(folder)))


def verdicts(report):
    return {check.name: check.verdict for check in report.checks}


def test_a_block_that_names_no_method_is_told_by_its_keys(tmp_path, tinyglm):
    config = json.loads((tinyglm("bf16") / "config.json").read_text())
    block = {"quantization": {"bits": 4, "group_size": 64, "mode": "affine"}}
    (tmp_path / "config.json").write_text(json.dumps(config | block))
    assert report_of(tmp_path).facts["quant_method"] == "mlx affine"


def test_a_target_without_the_layer(tinyglm):
    report = report_of(tinyglm("awq-int4"))
    facts = report.facts
    assert verdicts(report) == {"MTP layer": "not checked", "scheme": "passed"}
    assert (facts["model_type"], facts["n_layers"], facts["n_tensors"]) == ("glm_moe_dsa", 3, 437)
    assert facts["experts"] == {"1-2": 16}
    assert facts["quant_method"] == "compressed-tensors pack-quantized"
    assert facts["mtp"] == {"layer": 3, "present": False, "strays": []}
    wanted = {row["kind"]: row["wanted"] for row in facts["demanded"]}
    assert (wanted["routed experts"], wanted["router"]) == ("INT4 g32 asymmetric", "BF16")
    assert "layer-without-weights" in {trap.id for trap in report.traps}
    assert report.exit_code == 0


def test_a_source_says_how_each_kind_is_stored(tinyglm):
    mtp = report_of(tinyglm("nvfp4")).facts["mtp"]
    assert (mtp["present"], mtp["n_experts"], mtp["n_tensors"], mtp["bits"]) == (True, 16, 215, 4)
    assert mtp["files"] == ["model-mtp-inputscales.safetensors", "model-mtp.safetensors"]
    experts = [row for row in mtp["stored"] if row["kind"] == "routed experts"]
    n_bytes = 48 * (128 * 64 + 128 * 8 + 4 + 4)
    assert experts == [
        {
            "kind": "routed experts",
            "stored": "NVFP4 g16 static",
            "format": "modelopt_nvfp4",
            "n": 48,
            "n_bytes": n_bytes,
        }
    ]


@pytest.mark.parametrize("layout", ["bf16", "fp8", "nvfp4", "int4-int8mix"])
def test_a_layer_that_loads_as_it_is(tinyglm, layout):
    assert verdicts(report_of(tinyglm(layout)))["loads as it is"] == "passed"


def test_a_layer_that_does_not_load_as_it_is_names_the_command(tinyglm, tmp_path):
    folder = tmp_path / "grafted"
    target = json.loads((tinyglm("awq-int4") / "config.json").read_text())
    reconfigured(tinyglm("bf16"), folder, lambda c: c.update(quantization_config=target["quantization_config"]))
    (check,) = [c for c in report_of(folder).checks if c.name == "loads as it is"]
    assert check.verdict == "warning"
    assert check.fix == f"`mtpforge build --target {folder}`"


def test_a_config_alone_is_enough(config_folder):
    report = report_of(config_folder("target-awq-int4-ignore-to-77"))
    assert report.facts["mtp"] == {"layer": 78, "present": False, "strays": []}
    assert "config-only-target" in {trap.id for trap in report.traps}
    assert {row["wanted"] for row in report.facts["demanded"]} == {"INT4 g32 asymmetric", "BF16"}


def test_a_release_with_another_count_in_its_mtp_layer(census_folder):
    folder = census_folder("nvfp4-experts-lukealonso", "source-nvfp4-reap-469b-156-experts")
    report = report_of(folder)
    assert (report.facts["config_experts"], report.facts["experts"]) == (156, {"78": 256})
    assert "stale-expert-count" in {trap.id for trap in report.traps}


def test_a_target_that_the_engine_refuses_is_still_shown(tinyglm, tmp_path):
    def half(config):
        config["quantization_config"]["ignore"].append("model.layers.3.self_attn.q_a_proj")

    report = report_of(reconfigured(tinyglm("awq-int4"), tmp_path / "t", half))
    assert verdicts(report)["scheme"] == "warning"
    assert report.facts["demanded"] is None


def test_an_unknown_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(MtpforgeError, match="no MTP layer is known for model_type `llama`"):
        report_of(tmp_path)


def test_it_imports_neither_torch_nor_the_quantization_libraries(tinyglm):
    program = (
        "import sys; from mtpforge.checkpoint import open_checkpoint; from mtpforge.inspecting import inspect;"
        f"r = inspect(open_checkpoint({str(tinyglm('nvfp4'))!r})); assert r.facts['mtp']['present'];"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_a_draft_is_said_to_be_none_for_a_target(tinyglm, tmp_path):
    whole = open_checkpoint(str(tinyglm("bf16")))
    folder = tmp_path / "layer"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(whole.config)))
    layer = {
        name: torch.zeros(ref.spec.shape, dtype=torch.float32 if ref.spec.dtype == "F32" else torch.bfloat16)
        for name, ref in whole.locate(n for n in whole.names if n.startswith("model.layers.3.")).items()
    }
    save_file(layer, folder / "model.safetensors")
    report = report_of(folder)
    (check,) = [c for c in report.checks if c.name == "MTP layer"]
    assert check.detail.endswith(", and nothing else: a draft or a source, no target")
    assert report.exit_code == 0
    (check,) = [c for c in report_of(tinyglm("bf16")).checks if c.name == "MTP layer"]
    assert "nothing else" not in check.detail


def test_half_a_layer_is_a_failure(tinyglm, tmp_path):
    folder = shutil.copytree(tinyglm("nvfp4"), tmp_path / "half")
    index = folder / "model.safetensors.index.json"
    body = json.loads(index.read_text())
    assert body["weight_map"].pop("model.layers.3.enorm.weight")
    index.write_text(json.dumps(body))
    report = report_of(folder)
    assert verdicts(report)["MTP layer"] == "failed"
    assert report.exit_code == 1


def test_one_norm_in_float32_loads_for_inspect_and_build_alike(tinyglm, tmp_path):
    """Engines copy any float into their BF16 parameter; what they keep in F32 must be F32."""
    folder = shutil.copytree(tinyglm("bf16"), tmp_path / "target")
    recast(folder, "model.layers.3.enorm.weight", torch.float32)
    report = report_of(folder)
    assert verdicts(report)["loads as it is"] == "passed"
    assert report.facts["drafts_for_itself"]
    target = open_checkpoint(str(folder))
    assert choose_source(target, family_of(target.config), ENGINES["vllm"], open_checkpoint).self_sufficient


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("mlp.gate.e_score_correction_bias", torch.bfloat16), ("enorm.weight", torch.uint8)],
)
def test_a_dtype_that_the_engine_does_not_convert_needs_a_draft(tinyglm, tmp_path, name, dtype):
    """Kills: any float for any float. A byte for a norm is refused when the layer is read."""
    folder = shutil.copytree(tinyglm("bf16"), tmp_path / "target")
    recast(folder, f"model.layers.3.{name}", dtype)
    report = report_of(folder)
    assert verdicts(report).get("loads as it is") != "passed"
    assert not report.facts["drafts_for_itself"]


def test_a_pruned_target_whose_mtp_layer_was_not_pruned_does_not_load(tinyglm, tmp_path):
    folder = unpruned(tinyglm("bf16"), tmp_path / "target")
    report = report_of(folder)
    (check,) = [c for c in report.checks if c.name == "loads as it is"]
    assert (check.verdict, check.detail) == (
        "warning",
        "vLLM would not load it: 16 experts, the target serves 12",
    )
    target = open_checkpoint(str(folder))
    assert not choose_source(target, family_of(target.config), ENGINES["vllm"], open_checkpoint).self_sufficient


def test_without_the_layer_it_says_what_the_engine_would_do(tinyglm, config_folder):
    (check,) = [c for c in report_of(tinyglm("awq-int4")).checks if c.name == "MTP layer"]
    assert check.detail.endswith(
        "; without a draft vLLM does not start with MTP: its weights are missing from the checkpoint"
    )
    (check,) = [c for c in report_of(config_folder("target-bf16")).checks if c.name == "MTP layer"]
    assert "without a draft" not in check.detail  # whether it has one is not known
