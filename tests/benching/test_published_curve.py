"""The curve that others measured of a release: a yardstick for the like of it alone."""

from __future__ import annotations

import json
import os

import pytest
from benching.small import FEW, HEALTHY, checks, detail
from openai_server import by_chance, serving

import mtpforge
from mtpforge.benching import drivers, verdicts
from mtpforge.benching.asked import Asked
from mtpforge.families.curves import curve_of


@pytest.mark.parametrize(
    ("chances", "verdict"), [((0.84, 0.66, 0.49), "passed"), ((0.55, 0.35, 0.2), "warning")], ids=["near", "below"]
)
def test_published_curve_is_a_yardstick(chances, verdict):
    with serving(3, by_chance(*chances)) as server:
        server.models = [{"id": "served", "root": "someone/GLM-5.2-NVFP4"}]
        found = mtpforge.bench(server.url, **{**FEW, "content": ["code", "chat"], "prompts": 8, "generate": 80})
    assert checks(found)["published curve"] == verdict
    # of the code alone
    assert f"{found.cells[0].length.mean:.2f} tokens a round; GLM-5.2 gave 2.99 at k = 3" in detail(
        found, "published curve"
    )
    assert found.curve.name == "GLM-5.2"


@pytest.mark.parametrize("other", [{"content": ["chat"]}, {"content": ["code"], "temperature": 0.0}])
def test_published_curve_holds_for_its_content_and_temperature_alone(other):
    with serving(3, HEALTHY) as server:
        server.models = [{"id": "GLM-5.2"}]
        found = mtpforge.bench(server.url, **FEW | other)
    assert detail(found, "published curve") == (
        "that of GLM-5.2 is of code or coding at temperature 1 alone, which was not measured"
    )
    assert (checks(found)["published curve"], found.curve) == ("not checked", None)


def test_hint_at_the_published_curve_can_be_typed(run, tmp_path, monkeypatch):
    text, vllm = tmp_path / "own.txt", tmp_path / "vllm"
    text.write_text("alpha")
    vllm.write_text("#!/bin/sh\nexit 1\n")
    vllm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    known = {"coding": ("qa", "coding"), "none": ("qa", "writing")}
    for name, categories in known.items():
        (tmp_path / name).write_text("".join(json.dumps({"category": each}) + "\n" for each in categories))
    for option, value, content, wanted in (
        ("--text", text, (), "leave `--text` out: `--content code --temperature 1`"),
        ("--dataset", "corpus", ("chat",), "`--content code --temperature 1`"),
        ("--dataset", f"spec_bench={tmp_path / 'coding'}", ("qa",), "`--content coding --temperature 1`"),
        ("--dataset", f"spec_bench={tmp_path / 'none'}", (), "leave `--dataset` out: `--content code --temperature 1`"),
    ):
        asked = Asked(url="", **{option[2:]: value}, content=content)
        check = verdicts.of_curve(None, curve_of(["GLM-5.2"]), 3, drivers.source_of(asked).known, option)
        assert check.fix == wanted
        words = () if wanted.startswith("leave") else (option, value)
        ran = run("bench", "http://127.0.0.1:1", *words, *wanted[wanted.index("--content") : -1].split())
        assert ran.code == 4, ran.err  # no server there: what was typed is taken


@pytest.mark.parametrize("content", [[], ["text"]])
def test_hint_at_the_published_curve_names_what_a_text_has_not(tmp_path, content):
    (tmp_path / "own.txt").write_text("alpha")
    with serving(3, HEALTHY) as server:
        server.models = [{"id": "GLM-5.2"}]
        found = mtpforge.bench(server.url, text=tmp_path / "own.txt", **FEW | {"content": content})
    (check,) = (each for each in found.checks if each.name == "published curve")
    assert check.fix == "leave `--text` out: `--content code --temperature 1`"


def test_published_curve_says_nothing_of_few_rounds():
    with serving(3, by_chance(0.0, 0.0, 0.0)) as server:
        server.models = [{"id": "GLM-5.2"}]
        found = mtpforge.bench(server.url, **FEW | {"content": ["code"], "prompts": 2})
    assert checks(found)["published curve"] == "not checked"


@pytest.mark.parametrize("name", ["zai-org/GLM-5.3", "GLM-5.21", "Qwen3.5", "bigglm-5.2"])
def test_published_curve_is_of_no_other_release(name):
    with serving(1, by_chance(0.8)) as server:
        server.models = [{"id": name}]
        found = mtpforge.bench(server.url, **FEW)
    assert detail(found, "published curve") == "none is known for this model"
