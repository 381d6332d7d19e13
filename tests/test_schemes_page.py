"""docs/schemes.md: its table says what the formats' records say, its example is a scheme, its commands exist."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mtpforge import cli, scheme
from mtpforge.families import families
from mtpforge.formats import FORMATS
from mtpforge.tensors import BF16

PAGE = Path(__file__).parents[1] / "docs" / "schemes.md"
TEXT = PAGE.read_text()


def _ordered(values):
    ordered = sorted(values) if all(type(value) is int for value in values) else values
    return [str(value).lower() if isinstance(value, bool) else str(value) for value in ordered]


def table():
    """One row a format that can be written, one column a key, from the records."""
    keys = ("bits", "dtype", "strategy", "group_size", "symmetric", "scale_dtype", "input_scale")
    lines = ["| format | " + " | ".join(f"`{key}`" for key in keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, form in sorted(FORMATS.items()):
        if form.encode is None:
            continue
        takes = dict(form.takes)
        if "group" in takes.get("strategy", ()):
            takes.setdefault("group_size", ("any",))
        cells = [", ".join(_ordered(takes.get(key, ()))) for key in keys]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_the_page_s_table_is_that_of_the_formats():
    """REWRITE_GOLDEN=1 rewrites it."""
    start = TEXT.index("## What a format takes")
    head, _, rest = TEXT[start:].partition("\n\n")
    said = rest.partition("\n\n")[0]
    whole = TEXT[:start] + f"{head}\n\n{said}\n\n{table()}"
    if os.environ.get("REWRITE_GOLDEN"):
        PAGE.write_text(whole)
    assert PAGE.read_text() == whole


def test_the_page_s_example_is_a_scheme(release_config):
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    mine = scheme.loads(example, name="mine", where="mine.toml")
    for family in families():
        for module in family.modules(release_config("target-bf16"), 1):
            is_expert = module.template.startswith("mlp.experts.")
            assert (mine.of(module.template).quantization == BF16) != is_expert
            assert FORMATS[mine.of(module.template).quantization.format].layout(
                module.shape, mine.of(module.template).quantization
            )


def test_the_page_names_every_key_of_a_rule():
    keys = re.findall(r"^\| `(\w+)` \|", TEXT.split("## Keys of a rule")[1].split("## What")[0], re.MULTILINE)
    assert keys == list(scheme.KEYS)


@pytest.mark.parametrize("line", re.findall(r"^\$ mtpforge (.*)$", TEXT, re.MULTILINE))
def test_the_page_s_commands_run(line, tinyglm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = scheme.dumps(scheme.load("int4-g32-asym"))
    (tmp_path / "mine.toml").write_text(text)
    words = line.split(" > ")[0].replace("org/GLM-5.2-AWQ-INT4", str(tinyglm("awq-int4")))
    words = words.replace("org/GLM-5.2-NVFP4", str(tinyglm("nvfp4"))).split()
    assert cli.main([*words, "--dry-run"] if words[0] == "extract" else words) == 0
    if "-q" in words:
        assert scheme.loads(capsys.readouterr().out, name="mine", where="mine.toml").rules
