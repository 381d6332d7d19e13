"""`-q` prints what the help of the command says of it and nothing else, on either stream."""

from __future__ import annotations

import json
import shlex
import shutil
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from openai_server import by_chance, serving

from mtpforge.cli import COMMANDS

PAIR = "--target awq-int4 --source nvfp4"


def nothing(out: str) -> bool:
    return out == ""


def path(name: str) -> Callable[[str], bool]:
    """The line is this path, and something lies there."""
    return lambda out: out == f"{name}\n" and Path(name).exists()


def number_and_name(out: str) -> bool:
    number, name = out.split()
    return float(number) > 0 and name == "draft"


def two_numbers(out: str) -> bool:
    at_a_time, length = out.split()
    return at_a_time == "1" and float(length) > 1


def experts(out: str) -> bool:
    return json.loads(out) == [*range(16)] and out.count("\n") == 1


def names(out: str) -> bool:
    return out.splitlines() == sorted(out.split())


def toml(out: str) -> bool:
    return bool(tomllib.loads(out)["rules"])


def server(out: str) -> bool:
    return shlex.split(out)[:3] == ["vllm", "serve", str(Path("awq-int4").absolute())]


def script(out: str) -> bool:
    return out.startswith("_mtpforge_completion()")


SAID = {
    "inspect": "Only the name of the scheme that a draft for it needs.",
    "build": "Only the path of the draft that was made; nothing where none was.",
    "extract": "Only the path of what was made; nothing under --dry-run.",
    "schemes": "Only the names; of one scheme, its TOML.",
    "prune-plan": "Only the experts to keep, as a JSON list.",
    "capture": "Only the path of the file that was made.",
    "verify": "Only what failed.",
    "validate": "Only what failed.",
    "fidelity": "A line a draft, nearest first: total variation of the first step, and its name.",
    "accept": "A line a draft: tokens a cycle by sampling, and its name.",
    "bench": "A line a number of requests at a time: it, tokens a round, and the gain where there is a baseline.",
    "diff": "Only what differs.",
    "serve": "Only the command.",
    "graft": "Only the path of the graft; nothing under --dry-run.",
    "delta": "Only the path of the delta; nothing under --dry-run.",
    "merge": "Only the path of what was made; nothing under --dry-run.",
    "card": "Only the path of the card.",
    "push": "Only the address of the commit; nothing under --dry-run.",
    "doctor": "Only what failed.",
    "demo": "Only the path of the draft.",
    "completion": "Only the script, as without it.",
}
PRINTED = [
    ("inspect awq-int4", lambda out: out == "int4-g32-asym\n"),
    (f"build {PAIR} --check off", path("out/awq-int4-MTP-int4-g32-asym")),
    (f"build {PAIR} --dry-run", nothing),
    ("build --target fp8", nothing),  # its own layer loads
    ("extract --source nvfp4 -o layer --check off", path("layer")),
    ("extract --source nvfp4 -o layer --dry-run", nothing),
    ("schemes", names),
    ("schemes bf16", toml),
    ("schemes --from awq-int4", toml),
    (f"prune-plan {PAIR}", experts),
    ("capture --target awq-int4 --text text.txt --tokens 20 -o inputs.safetensors", path("inputs.safetensors")),
    ("verify draft --target awq-int4", nothing),
    ("fidelity draft --reference nvfp4 --tokens 8", number_and_name),
    ("accept draft --target bf16 --text text.txt --windows 1 --length 9 --generate 5", number_and_name),
    ("bench URL --concurrency 1 --content chat --prompts 2 --generate 8", two_numbers),
    ("diff draft draft", nothing),
    ("serve draft --target awq-int4 --print", server),
    ("graft draft --into awq-int4 -o grafted --link sym", path("grafted")),
    ("graft draft --into awq-int4 -o grafted --dry-run", nothing),
    ("delta draft --against awq-int4 -o delta", path("delta")),
    ("merge --base bf16 --take lm_head=bf16 -o merged --link sym --dry-run", nothing),
    ("card draft -o card.md", path("card.md")),
    ("push draft ann/name --target awq-int4 --dry-run", nothing),
    ("doctor", nothing),
    ("demo -o demo", path("demo")),
    ("completion bash", script),
]


@pytest.fixture
def folder(in_folder, demo, tinyglm):
    for layout in ("awq-int4", "nvfp4", "fp8", "bf16"):
        (in_folder / layout).symlink_to(tinyglm(layout))
    shutil.copytree(demo / "out" / "demo", in_folder / "draft")
    (in_folder / "text.txt").write_text("the cat sat on the mat. " * 9)


@pytest.mark.parametrize(("line", "expected"), PRINTED, ids=[line for line, _ in PRINTED])
def test_quiet_prints_what_the_help_says(run, folder, line, expected):
    with serving(1, by_chance(0.8)) if "URL" in line else nullcontext() as server:
        ran = run(*(server.url if word == "URL" else word for word in line.split()), "-q")
    assert (ran.code, ran.err) == (0, "")
    assert expected(ran.out), ran.out


def test_quiet_of_validate_is_the_engine_that_is_missing(run, folder):
    ran = run("validate", "draft", "--target", "awq-int4", "--engine-python", "/nowhere/python", "-q")
    assert (ran.code, ran.out, ran.err.startswith("error: ")) == (5, "", True)


@pytest.mark.parametrize("name", [entry.name for entry in COMMANDS])
def test_help_says_what_quiet_prints_and_the_cases_above_hold_it_to_that(run, name):
    text = " ".join(run(name, "--help").out.split())
    assert f"-q, --quiet {SAID[name]} -v, --verbose" in text
    assert name == "validate" or any(line.split()[0] == name for line, _ in PRINTED)
