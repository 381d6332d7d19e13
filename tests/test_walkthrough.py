"""docs/walkthrough.md: its commands run in order, in this process, and what they print is compared with the page.

`...` in the page stands for anything. Free disk, mtpforge's version and the folder are written in one way; decimal
fractions may differ by CLOSE, as sums do between processors.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mtpforge.cli import main

TOP = Path(__file__).parents[1]
PAGE = TOP / "docs" / "walkthrough.md"
HOME = "/home/ann/mtpforge"  # the clone, as the page calls it
CLOSE = 0.0006
FRACTION = re.compile(r"\b\d\.\d{3,}\b")
ENGINE_PYTHON = "MTPFORGE_TEST_ENGINE_PYTHON"
LONG = ("capture", "fidelity")
ENGINE = ("validate",)
EVERY_STEP = {"inspect", "build", "verify", "validate", "capture", "fidelity", "serve", "graft", "card"}


@dataclass(frozen=True)
class Step:
    argv: tuple[str, ...]
    printed: str

    @property
    def name(self) -> str:
        return self.argv[1] if self.argv[0] == "mtpforge" else self.argv[0]


def steps(page: str) -> list[Step]:
    """Commands of the console blocks of a page, each with the lines up to the next."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            found.append(Step(tuple(shlex.split(command)), printed))
    return found


def tidy(text: str, folder: Path) -> str:
    """Text without what the page leaves open; lines of progress go."""
    text = text.replace(str(folder), HOME)
    text = re.sub(r"disk free [\d.]+ \w+", "disk free [SIZE]", text)
    text = re.sub(r"mtpforge \d+\.\d+\.\d+\w*", "mtpforge [VERSION]", text)
    return re.sub(r"^\w+ +\d+ % .*\n", "", text, flags=re.MULTILINE)


def differs(page: str, printed: str) -> str:
    """What is wrong with a text beside the page's, "" if it is as the page says."""
    between = [re.escape(FRACTION.sub("#", piece)).replace(r"\#", FRACTION.pattern) for piece in page.split("...")]
    found = re.fullmatch("(.*)".join(between), printed, re.DOTALL)
    if not found:
        return f"the page says\n{page}\nit printed\n{printed}"
    kept = "".join(
        printed[end:start]
        for end, start in zip(
            [0, *map(found.end, range(1, len(between)))],
            [*map(found.start, range(1, len(between))), len(printed)],
            strict=True,
        )
    )
    far = [
        (said, got)
        for said, got in zip(FRACTION.findall(page.replace("...", "")), FRACTION.findall(kept), strict=True)
        if abs(float(said) - float(got)) > CLOSE
    ]
    return f"the page says, and it printed: {far}" if far else ""


def clone(folder: Path) -> None:
    """What the walk touches of a clone."""
    (folder / "out").mkdir()
    for name in ("mtpforge/_demo", "tests/data/tinyglm"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).symlink_to(TOP / name)


@pytest.fixture
def walked(tmp_path, monkeypatch):
    """Runs the page's commands without those of some names; gives every difference."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", *(n for n in os.environ if n.startswith("MTPFORGE_"))):
        if name != ENGINE_PYTHON:
            monkeypatch.delenv(name, raising=False)
    clone(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(step: Step) -> str:
        with (tmp_path / "printed.txt").open("w+") as both, monkeypatch.context() as streams:
            streams.setattr(sys, "stdout", both)
            streams.setattr(sys, "stderr", both)
            code = main(list(step.argv[1:]))
            both.seek(0)
            printed = both.read()
        assert code == 0, printed
        return tidy(printed, tmp_path)

    def walk(*without: str) -> list[str]:
        wrong = []
        for step in steps(PAGE.read_text()):
            if step.argv[0] == "cp":
                subprocess.run(step.argv, check=True)
            elif step.name not in without and (found := differs(tidy(step.printed, tmp_path), run(step))):
                wrong.append(f"{shlex.join(step.argv)}: {found}")
        return wrong

    return walk


def test_page_has_every_step_and_nothing_that_the_walk_does_not_run():
    walk = steps(PAGE.read_text())
    assert {step.name for step in walk} == EVERY_STEP | {"cp"}
    assert {step.argv[0] for step in walk} == {"mtpforge", "cp"}
    assert PAGE.read_text().count("```console") * 2 == PAGE.read_text().count("```")


def test_walk_prints_what_the_page_says(walked):
    assert walked(*LONG, *ENGINE) == []


@pytest.mark.slow
def test_walk_with_what_runs_the_layer(walked):
    assert walked(*ENGINE) == []


@pytest.mark.engine
def test_walk_with_the_engine_s_loader(walked, tmp_path):
    if not (python := os.environ.get(ENGINE_PYTHON)):
        pytest.skip(f"{ENGINE_PYTHON} is not set")
    wrapper = tmp_path / ".venv-vllm/bin/python"  # the page's name for whatever interpreter the tests were given
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    wrapper.chmod(0o755)
    assert walked(*LONG) == []


@pytest.mark.parametrize(
    ("page", "printed", "equal"),
    [
        ("a\n...\nc\n", "a\nb\nc\n", True),
        ("a\n...\nc\n", "a\nb\nd\n", False),
        ("error 0.0848 (x)\n", "error 0.0849 (x)\n", True),
        ("error 0.0848 (x)\n", "error 0.0948 (x)\n", False),
        ("variation 0.0460\n", "variation 0.0426\n", False),
        ("...\n0.123\n", "0.9 and 0.777\n0.123\n", True),
        ("12 tensors\n", "13 tensors\n", False),
    ],
)
def test_what_counts_as_what_the_page_says(page, printed, equal):
    assert (differs(page, printed) == "") is equal
