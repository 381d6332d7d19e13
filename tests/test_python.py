"""Python as a way in: the examples of the reference page run, results can be read, nothing is loaded early."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mtpforge
from mtpforge import tables
from mtpforge.drafting.calls import Options
from mtpforge.drafting.request import Request
from mtpforge.engines.vllm import installed
from mtpforge.report import Check, Report, Trap

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "python.md"
REPORT = Report(
    "verify",
    (Check("names", "passed", "3 of 3"), Check("config", "failed", "`a<b>` is\x1b[2J wrong", "mend it")),
    (Trap("one", "warning", "beware", "do this"), Trap("two", "note", "nothing")),
)


def test_examples_of_the_reference_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)


def test_page_names_every_public_function():
    functions = {name for name in mtpforge.__all__ if name[0].islower()}
    assert functions == set(re.findall(r"`(\w+)\(", PAGE.read_text())) & functions


def test_every_public_name_is_there_and_is_no_module():
    for name in mtpforge.__all__:
        assert not hasattr(getattr(mtpforge, name), "__path__"), name
    with pytest.raises(AttributeError):
        _ = mtpforge.no_such_name


def test_options_of_python_are_those_of_a_request():
    """A field that a call does not take could not be asked for from Python."""
    fields = {field.name for field in dataclasses.fields(Request)}
    assert Options.__annotations__.keys() == fields - {"target", "source", "out"}


def test_import_loads_nothing_and_a_plan_no_torch(tinyglm):
    program = (
        "import sys, mtpforge\n"
        "print([m for m in sys.modules if m.startswith('mtpforge.')])\n"
        f"mtpforge.plan({str(tinyglm('awq-int4'))!r}, {str(tinyglm('nvfp4'))!r})\n"
        "print([m for m in ('torch', 'transformers', 'rich', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


def test_target_that_drafts_for_itself_is_said_to(tinyglm):
    with pytest.raises(mtpforge.MtpforgeError) as caught:
        mtpforge.build(tinyglm("fp8"))
    assert caught.value.what == "nothing to build: the target's own layer loads as it is"
    assert caught.value.code == 0


def test_report_prints_verdict_table_and_what_to_do():
    assert str(REPORT) == (
        "verify failed: config\n"
        "  names    passed   3 of 3\n"
        "  config   failed   `a<b>` is\\x1b[2J wrong\n"
        "warning: beware; do this\n"
        "hint: mend it"
    )


def test_report_that_is_summed_up_says_so_first():
    assert str(dataclasses.replace(REPORT, summary="does not fit")).splitlines()[0] == (
        "verify failed: config: does not fit"
    )


def test_report_of_a_notebook_is_quoted_html():
    shown = REPORT._repr_html_()
    assert "<td>`a&lt;b&gt;` is\\x1b[2J wrong</td>" in shown
    assert "\x1b" not in shown


def test_table_without_rows_is_its_headings():
    assert tables.text("nothing", ("a", "b"), []) == "nothing\n  a   b"
    assert tables.text("n", ("a", "b"), [("x", 5), ("y", 1234)]) == "n\n  a       b\n  x       5\n  y   1,234"


def test_plan_is_short_in_a_prompt_and_a_table_when_printed(tinyglm):
    plan = mtpforge.plan(tinyglm("awq-int4"), tinyglm("nvfp4"))
    assert repr(plan).startswith("<draft of layer 3 of ")
    assert "\n" not in repr(plan)
    assert "  routed experts   48   NVFP4 g16 static   INT4 g32 asymmetric   encoded   config group_0" in str(plan)
    assert plan._repr_html_().count("<tr>") == len(str(plan).splitlines()) - 1


@pytest.fixture(scope="module")
def draft(tinyglm, tmp_path_factory):
    out = tmp_path_factory.mktemp("draft") / "draft"
    return mtpforge.build(tinyglm("awq-int4"), tinyglm("nvfp4"), out=out, check="off").path


def test_validate_is_verify_and_the_loader_s_answer(draft, tinyglm, tmp_path, monkeypatch):
    asked, straight, crooked_python = [], tmp_path / "straight", tmp_path / "crooked"
    for python in (straight, crooked_python):
        python.touch(mode=0o755)

    def check(folder, _target, *, python, **_served):
        asked.append((folder, python))
        refused = python.endswith("crooked")
        fix = "{anew}" if refused else ""
        return Report("validate", (Check("engine loads the draft", "failed" if refused else "passed", "", fix),))

    monkeypatch.setattr(installed, "check", check)
    target = tinyglm("awq-int4")
    report = mtpforge.validate(draft, target, engine_python=str(straight))
    assert (report.ok, report.command) == (True, "validate")
    names = [c.name for c in report.checks]
    assert {"names", "numbers", "config"} < set(names)
    assert "loader" not in names  # what verify leaves open is answered
    crooked = mtpforge.validate(str(draft), mtpforge.open_checkpoint(target), engine_python=crooked_python)
    assert not crooked.ok
    (no,) = [check for check in crooked.checks if check.verdict == "failed"]
    assert f"--force -o {draft}`" in no.fix
    assert asked == [(draft, str(straight)), (draft, str(crooked_python))]


def test_an_option_that_is_called_otherwise_is_named_by_the_function_that_was_called():
    with pytest.raises(TypeError, match=r"^mtpforge.serve_command\(\) has no option 'k': .*`speculative_tokens`"):
        mtpforge.serve_command("draft", "target", k=5)
    with pytest.raises(TypeError, match=r"^mtpforge.build\(\) has no option 'dry_run': `mtpforge.plan`"):
        mtpforge.build("target", dry_run=True)


def test_validate_without_an_engine_says_so_unless_the_draft_is_bad_anyway(draft, tinyglm, tmp_path, monkeypatch):
    monkeypatch.setattr(installed, "is_installed", lambda: False)
    with pytest.raises(mtpforge.MtpforgeError) as caught:
        mtpforge.validate(draft, tinyglm("awq-int4"))
    assert (caught.value.what, caught.value.code) == ("no engine found to ask", 5)
    report = mtpforge.validate(draft, tinyglm("nvfp4"))
    assert (report.ok, report.command) == (False, "validate")


def test_the_readme_names_every_function():
    text = (PAGE.parents[2] / "README.md").read_text()
    said = text[text.index("From Python") : text.index("[docs/reference/python.md]")]
    functions = {name for name in mtpforge.__all__ if name.islower() and not name.startswith("_")}
    assert {name.removeprefix("mtpforge.") for name in re.findall(r"`([\w.]+)`", said)} == functions
