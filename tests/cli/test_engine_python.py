"""Interpreters and schemes that `validate` cannot ask an engine with are refused at once, with a way out."""

from __future__ import annotations

import re
import shlex
import sys

import pytest


@pytest.fixture
def draft(run, in_folder, tinyglm):
    """A draft of the INT4 target."""
    sides = ("--target", str(tinyglm("awq-int4")), "--source", str(tinyglm("bf16")))
    assert run("build", *sides, "-o", "draft", "--check", "off").code == 0
    return in_folder / "draft"


@pytest.mark.parametrize("engine", ["vllm", "both"])
def test_an_interpreter_that_is_none_is_refused_before_verify(run, draft, tinyglm, engine):
    named = "/nope" if engine == "vllm" else f"{sys.executable}:/nope"
    sides = ("--target", str(tinyglm("awq-int4")), "--engine", engine)
    ran = run("validate", str(draft), *sides, "--engine-python", named)
    assert (ran.code, ran.out) == (5, "")
    assert ran.err.startswith("error: no engine found to ask\nwhere: --engine-python\ncause: no program /nope\n")


def test_two_interpreters_for_one_engine_are_told_of_both(run, draft, tinyglm):
    both = f"{sys.executable}:{sys.executable}"
    ran = run("validate", str(draft), "--target", str(tinyglm("awq-int4")), "--engine-python", both)
    assert (ran.code, ran.out) == (5, "")
    assert f"cause: no program {both}\n" in ran.err
    assert ran.err.endswith(
        " hint: `--engine both` asks two, each by its own, `--engine-python PATH:PATH`; else name one\n"
    )


@pytest.mark.parametrize("asking", ["verify", "validate", "serve"])
def test_scheme_that_two_engines_do_not_share_is_answered_with_a_whole_command(run, draft, tinyglm, asking):
    target = str(tinyglm("awq-int4"))
    ran = run(asking, str(draft), "--target", target, "--engine", "both", *(["--print"] if asking == "serve" else []))
    assert ran.code == 3
    hint = ran.err.splitlines()[-1]
    assert "`--scheme`" not in hint  # none of them has it, or means this by it
    command = shlex.split(re.findall(r"`([^`]+)`", hint)[0])
    assert command == ["mtpforge", "build", "--target", target, "--engine", "both", "--scheme", "NAME"]
    listed = hint.partition("with one of: ")[2].partition(";")[0].split(", ")
    assert "bf16" in listed
    for name in listed:  # each is one that this command takes
        source = ("--source", str(tinyglm("nvfp4")))
        assert run(*command[1:-1], name, *source, "--dry-run", "-q").code == 0, name
