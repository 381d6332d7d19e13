"""Run by an interpreter with vLLM: what vLLM itself makes of targets that the command restates.

Reads one JSON object of requests, prints one of answers, so that one start of the interpreter answers all:

    pairs       [target folder, draft folder, overrides] -> [how it is refused ("" where it is taken), what is wrong,
                tensors in the draft]
    commands    arguments of `vllm serve` -> the quantization block in the config that vLLM makes of them
    restated    a target's config -> scheme -> matrices of the main layers that vLLM would build otherwise, and how many
                were asked about; of `schemes` those that cannot be stated are left out
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

from mtpforge.engines.vllm.loader import stand_in

stand_in.prepare(90, "cpu")

import vllm_answers  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.entrypoints.common.cli_args import make_arg_parser  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402

from mtpforge import scheme as schemes  # noqa: E402
from mtpforge.checkpoint import open_checkpoint  # noqa: E402
from mtpforge.engines import ENGINES, overlay  # noqa: E402
from mtpforge.engines.loading.refusing import RefusedError  # noqa: E402
from mtpforge.engines.loading.verdict import Findings  # noqa: E402
from mtpforge.engines.vllm.loader import check as loader  # noqa: E402
from mtpforge.engines.vllm.loader.request import Request  # noqa: E402
from mtpforge.errors import MtpforgeError  # noqa: E402

VLLM = ENGINES["vllm"]
# A block under which vLLM's class asks about everything.
PROBE = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": [], "config_groups": {
    "all": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}}}  # fmt: skip


def pair(target, draft, overrides):
    """The loader's verdict."""
    findings = Findings()
    try:
        loader.check(Request(target, draft, overrides=overrides), findings)
    except RefusedError as error:
        return str(error), [], 0
    return "", findings.errors, findings.facts["tensors"]


def command(argv):
    """The block in force after vLLM's own parser and configs have read a command."""
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(argv)
    parsed.model = parsed.model_tag  # entrypoints/cli/serve.py, ServeSubcommand.cmd
    model = EngineArgs.from_cli_args(parsed).create_model_config()
    return getattr(model.hf_config, "quantization_config", None)


def text_of(config):
    """The language model's own config."""
    return config.get("text_config", config)


def questions(config):
    """What vLLM's class of such a target asks; of four experts as of all."""
    text = text_of(config)
    kept = vllm_answers.Questions(text["first_k_dense_replace"])
    small = {key: value for key, value in text.items() if key != "num_experts"}
    small |= {"n_routed_experts": 4, "num_experts_per_tok": 4}
    whole = small if text is config else config | {"text_config": small}
    with tempfile.TemporaryDirectory() as folder, kept.kept():
        (Path(folder) / "config.json").write_text(json.dumps(whole | {"quantization_config": PROBE}))
        stand_in.set_groups(1, 0)
        loader.construct_target(loader.configure(Request(folder, folder), Findings()))
    return kept


def restated(config, wanted, kept):
    """scheme -> [differences, questions] of a target."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        target, text = open_checkpoint(folder), text_of(config)
        asked = kept.of_layers(text["first_k_dense_replace"], range(text["num_hidden_layers"]))
        before = vllm_answers.answers(folder, {}, asked)
        for name in wanted:
            with contextlib.suppress(MtpforgeError):
                told = overlay.attempt(target, VLLM, schemes.load(name))[0]
                if told.is_restated:
                    after = vllm_answers.answers(folder, {"quantization_config": dict(told.quantization)}, asked)
                    found[Path(name).stem] = vllm_answers.differences(before, after), len(before)
    return found


def _is_plain(config):
    return "quantization_config" not in config


def main():
    """Answer."""
    asked = json.loads(sys.stdin.read())
    with contextlib.redirect_stdout(sys.stderr):
        told = {"pairs": [pair(*each) for each in asked["pairs"]]}
        told["commands"] = [command(each) for each in asked["commands"]]
        plain_last = {config["model_type"]: config for config in sorted(asked["restated"].values(), key=_is_plain)}
        kept = {model_type: questions(config) for model_type, config in plain_last.items()}
        told["restated"] = {
            name: restated(config, asked["schemes"], kept[config["model_type"]])
            for name, config in asked["restated"].items()
        }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
