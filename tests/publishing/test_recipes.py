"""Every command of docs/recipes, on tiny checkpoints in the place of the releases."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from respelled import layer_under_its_own_block

import mtpforge
from mtpforge import cli

PAGES = Path(__file__).parents[2] / "docs" / "recipes"
OF_ITS_OWN_BLOCK = "org/GLM-5.2-AWQ-INT4-FP8-MTP"
# Longer names first.
PLACES = {
    "org/GLM-5.2-AWQ-INT4-15pct": "awq-int4-12experts",
    "org/GLM-5.2-NVFP4-Lorbus": "nvfp4",
    "org/GLM-5.2-NVFP4-CT": "awq-int4",
    "org/GLM-5.2-AWQ-INT4": "awq-int4",
    "org/GLM-5.2-Int8Mix": "int4-int8mix",
    "org/GLM-5.2-NVFP4": "nvfp4",
    "org/GLM-5.2-W4A16": "awq-int4",
    "zai-org/GLM-5.2-FP8": "fp8",
    "zai-org/GLM-5.2": "bf16",
}
RECIPES = sorted(page.stem for page in PAGES.glob("*.md") if page.stem != "README")


def test_the_list_names_every_page():
    assert sorted(re.findall(r"\]\(([\w-]+)\.md\)", (PAGES / "README.md").read_text())) == RECIPES


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_commands_of_a_page_make_what_loads_as_it_is(name, tinyglm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = layer_under_its_own_block(tinyglm("awq-int4"), tinyglm("fp8"), tmp_path / "own")
    lines = re.findall(r"^\$ mtpforge (.*)$", (PAGES / f"{name}.md").read_text(), re.MULTILINE)
    for typed in lines:
        words = shlex.split(typed.replace("layers.78.", "layers.3."))
        for n, word in enumerate(words):
            if word == OF_ITS_OWN_BLOCK:
                words[n] = str(own)
            for release, layout in PLACES.items():
                if word == release or word.endswith(f"={release}"):
                    words[n] = f"{word.removesuffix(release)}{tinyglm(layout)}"
        assert cli.main(words) == 0, words
    made = Path(words[words.index("-o") + 1])
    assert mtpforge.inspect(made).facts["drafts_for_itself"]
