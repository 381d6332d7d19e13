"""Values of options that are more than a word."""

from __future__ import annotations

import pytest

from mtpforge.cli.options import Size
from mtpforge.report import Check, plain
from mtpforge.tables import folded


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("2GB", 2 * 10**9),
        ("2G", 2 * 10**9),
        ("2GiB", 2 << 30),
        ("500M", 5 * 10**8),
        ("1.5gb", 15 * 10**8),
        ("512", 512),
    ],
)
def test_size_suffixes(text, n_bytes):
    assert Size().convert(text, None, None) == n_bytes


def test_folded_command_keeps_values_beside_their_options():
    assert folded(["vllm", "serve", "a b", "--flag", "--json", '{"k": 1}']) == (
        "vllm serve 'a b' \\\n  --flag \\\n  --json '{\"k\": 1}'"
    )


def test_records_become_objects_and_odd_numbers_text():
    assert plain({"check": Check("a", "passed", "b"), "none": float("inf"), "set": {"b", "a"}}) == {
        "check": {"name": "a", "verdict": "passed", "detail": "b", "fix": ""},
        "none": "inf",
        "set": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (("build", "org/T"), "did you mean `--target org/T`?"),
        (("extract", "org/S", "-o", "x"), "did you mean `--source org/S`?"),
        (("prune-plan", "--target", "a", "org/T"), "did you mean `--target org/T`?"),
        (("demo", "x"), "`mtpforge demo --help`"),
    ],
)
def test_checkpoint_without_its_option_is_answered_with_the_option(run, argv, hint):
    ran = run(*argv)
    assert ran.code == 2
    assert f" hint: {hint}\n" in ran.err
