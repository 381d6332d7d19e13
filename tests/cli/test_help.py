"""The texts of --help, and the pages that are made from the same objects."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from golden_text import GOLDEN, compare
from reference_pages import cli_page, exit_codes_page, json_page

from mtpforge.cli import COMMANDS, group
from mtpforge.cli.output import Screen

ROOT = Path(__file__).parents[2]
NAMES = [entry.name for entry in COMMANDS]


def parse(line: str) -> None:
    """Fails as the command line would; nothing is run."""
    typed = re.split(r' > |\)"', line)[0]  # no redirection, no end of a substitution
    words = shlex.split(typed, comments=True)[1:]
    commands = group()
    if words == ["COMMAND", "--help"]:
        return
    with commands.make_context("mtpforge", words, obj=Screen()) as ctx:
        name, command, rest = commands.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
        command.make_context(name, rest, parent=ctx)


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_text_is_the_stored_one(run, name):
    ran = run(*filter(None, (name, "--help")))
    assert (ran.code, ran.err) == (0, "")
    compare(GOLDEN / "help" / f"{name or 'mtpforge'}.txt", ran.out)


@pytest.mark.parametrize("name", NAMES)
def test_h_is_help(run, name):
    assert run(name, "-h").out == run(name, "--help").out


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_two_examples_that_parse(name):
    command = group().get_command(click.Context(group()), name)
    assert len(command.examples) == 2
    for example in command.examples:
        parse(example[example.index("mtpforge ") :])


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/troubleshooting.md",
        "docs/pruning.md",
        "docs/calibration.md",
        "docs/fidelity.md",
        "docs/reports.md",
    ],
)
def test_every_command_of_a_page_parses(page):
    text = (ROOT / page).read_text()
    lines = [line.strip() for line in text.splitlines() if line.startswith("    mtpforge ")]
    inline = re.findall(r"`(mtpforge [a-z]+ [^`]+)`", text)
    assert [*lines, *inline]
    for line in (*lines, *inline):
        parse(line)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/troubleshooting.md",
        "docs/pruning.md",
        "docs/calibration.md",
        "docs/fidelity.md",
        "docs/reports.md",
    ],
)
def test_every_link_of_a_page_leads_to_a_file(page):
    links = re.findall(r"\]\(([^):]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not leads((ROOT / page).parent, link)] == []


def leads(home, link):
    """Whether there is such a file, and in it such a heading."""
    file, _, heading = link.partition("#")
    if not (home / file).is_file():
        return False
    headings = re.findall(r"^#+ (.*)$", (home / file).read_text(), re.MULTILINE) if heading else []
    return not heading or heading in [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_says_what_it_is(name):
    command = group().get_command(click.Context(group()), name)
    assert all(p.help for p in command.params if isinstance(p, click.Option))


def test_same_word_means_the_same_everywhere():
    """An option of two commands has one type and one metavar."""
    seen: dict[str, tuple] = {}
    for name in NAMES:
        for param in group().get_command(click.Context(group()), name).params:
            for word in (w for w in param.opts if w.startswith("--")):
                kind = (type(param.type), param.metavar, param.heading)
                assert seen.setdefault(word, kind) == kind, f"{word} of {name}"


def test_nothing_typed_shows_help_and_is_no_success(run):
    ran = run()
    assert ran.code == 2
    assert ran.out == run("--help").out


@pytest.mark.parametrize(
    ("file", "page"), [("cli.md", cli_page), ("exit-codes.md", exit_codes_page), ("json.md", json_page)]
)
def test_reference_page_is_made_from_the_code(run, file, page):
    compare(ROOT / "docs" / "reference" / file, page())


def test_help_needs_neither_torch_nor_rich():
    program = (
        "import sys; from mtpforge.cli import main; main(['build', '--help']);"
        "print([m for m in ('torch', 'rich', 'huggingface_hub', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_words_that_are_typed_as_they_stand_are_lower_case(run, name):
    """`--experts match|keep|N`: a capital stands for a value of one's own, in every choice of a help text."""
    choices = re.findall(r"^ +-.*? ([\w:\[\]]+(?:\|[\w:\[\]]+)+)", run(name, "--help").out, re.MULTILINE)
    words = [word for choice in choices for word in re.split(r"[|\[\]:]+", choice) if word]
    assert [word for word in words if not (word.islower() or word in ("N", "NAME", "FILE", "CKPT"))] == []
    assert choices or name not in ("build", "extract", "prune-plan")
