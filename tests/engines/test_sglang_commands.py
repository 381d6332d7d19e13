"""SGLang's own parser takes the commands for machines, and resolves them beside the configs of target and draft."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path

import machine_commands
import pytest
from sglang_asked import PYTHON, ROOT, in_sglang

from mtpforge.engines import ENGINES
from mtpforge.engines.hardware import machines
from mtpforge.families import family_of

pytestmark = [pytest.mark.engine, in_sglang]
SGLANG = ENGINES["sglang"]
FOLDERS = {"--model-path": "{target}", "--speculative-draft-model-path": "{draft}"}
ROOM = 2000  # characters of a refusal that say enough


def words_of(command):
    """What stands behind `sglang serve`, with places for the folders that are made where it is asked."""
    words = command.argv[command.argv.index("sglang") + 2 :]
    places = {words[words.index(flag) + 1]: place for flag, place in FOLDERS.items()}
    return tuple(places.get(word, word) for word in words)


@cache
def draft_config(name):
    served = machine_commands.target(name)
    family = family_of(served.config)
    scheme = SGLANG.demands(served, None, family)
    experts = family.text(served.config)[family.expert_keys[0]]
    return SGLANG.draft_config(served, served.config, family, scheme, experts)


def refusals(asked, tmp_path):
    """What SGLang says of (target, words), in their order."""
    answers = tmp_path / "answers.json"
    questions = [(machine_commands.target(name).config, draft_config(name), words) for name, words in asked]
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("sglang_parser.py"), answers],
        input=json.dumps(questions),
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert answers.exists(), done.stderr[-ROOM:]
    return json.loads(answers.read_text())


def kind_of(name):
    """What SGLang resolves arguments by, of a target's config."""
    config = machine_commands.target(name).config
    block = config.get("quantization_config") or {}
    return config["model_type"], block.get("quant_method"), block.get("quant_algo"), block.get("format")


def test_it_takes_every_command(tmp_path):
    """One of each kind of target and words: names of machines never reach SGLang."""
    every = [(machine, name, words_of(command)) for machine, name, command in machine_commands.commands("sglang")]
    assert {machine for machine, _, _ in every} == set(machines())
    found = {(kind_of(name), words): (machine, name, words) for machine, name, words in every}
    assert len({kind for kind, _ in found}) > 10
    said = refusals([(name, words) for _, name, words in found.values()], tmp_path)
    assert [(asked, answer[:ROOM]) for asked, answer in zip(found.values(), said, strict=True) if answer] == []


def test_it_takes_the_command_of_every_node(tmp_path):
    nodes = [machine_commands.asked("spark-x4", node=node) for node in range(4)]
    served = machine_commands.target("target-fp8")
    asked = [("target-fp8", words_of(machine_commands.command("sglang", served, node))) for node in nodes]
    assert refusals(asked, tmp_path) == [""] * 4


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--no-such-flag", "1", "unrecognized arguments"),
        ("--kv-cache-dtype", "fp7", "invalid choice"),
        ("--nnodes", "3", "tp_size must be divisible by number of nodes"),
        ("--quantization", "awq", "does not match the quantization method"),
    ],
)
def test_it_refuses_what_no_server_takes(flag, value, said, tmp_path):
    """Or the tests above could not fail: by the parser, by the arguments together, by the target's config."""
    command = machine_commands.command(
        "sglang", machine_commands.target("target-fp8"), machine_commands.asked("h200-x8")
    )
    (answer,) = refusals([("target-fp8", (*words_of(command), flag, value))], tmp_path)
    assert said in answer
