"""How a command ends: error form, exit code, JSON envelope, interrupts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import click
import pytest

import mtpforge
from mtpforge import errors
from mtpforge.cli import COMMANDS, group, main
from mtpforge.drafting import machine
from mtpforge.errors import MtpforgeError


@pytest.fixture
def ending(monkeypatch):
    """Makes `mtpforge doctor` end with an exception."""

    def end_with(error: BaseException) -> None:
        def versions():
            raise error

        monkeypatch.setattr(machine, "versions", versions)

    return end_with


def test_unknown_command_names_the_nearest(run):
    ran = run("biuld")
    assert ran.code == 2
    assert ran.err == "error: no such command `biuld`\n hint: did you mean `build`?\n"


def test_unknown_command_without_a_near_one_points_to_help(run):
    assert run("xyzzy").err.endswith("hint: `mtpforge --help` lists the commands\n")


def test_unknown_option_names_the_nearest(run):
    ran = run("build", "--targte", "x")
    assert ran.code == 2
    assert ran.err == "error: no such option `--targte`\n hint: did you mean `--target`?\n"


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (("graft", "x", "--target", "y"), "did you mean `--into`?"),
        (("delta", "x", "--target", "y"), "did you mean `--against`?"),
        (("merge", "--target", "y"), "did you mean `--base`?"),
        (("fidelity", "x", "--source", "y"), "did you mean `--reference`?"),
        (("serve", "x", "--targte", "y"), "did you mean `--target`?"),
        (
            ("serve", "x", "--target", "y", "--max-model-len", "9"),
            "an option of the engine's comes last, behind `--`: `-- --max-model-len`",
        ),
        (("verify", "x", "--max-model-len", "9"), "`mtpforge verify --help` shows the options"),
    ],
)
def test_option_that_has_another_name_here_is_answered_with_it(run, argv, hint):
    ran = run(*argv)
    assert ran.code == 2
    assert ran.err.endswith(f"\n hint: {hint}\n")


def test_unknown_value_names_the_nearest(run):
    ran = run("extract", "--source", "x", "-o", "y", "--check", "ful")
    assert ran.code == 2
    assert ran.err == (
        "error: `ful` is no value of `--check`\nwhere: option `--check`\n"
        "cause: known: full, sample, off\n hint: did you mean `--check full`?\n"
    )


def test_missing_option_is_named(run):
    ran = run("build")
    assert ran.code == 2
    assert ran.err == "error: `--target` is missing\n hint: `mtpforge build --help` shows the options\n"


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_impossible_number_is_the_command_line_s_fault(run, number):
    ran = run("build", "--target", "x", "--tp", number)
    assert ran.code == 2
    assert ran.err.startswith("error: invalid value for '--tp'")
    assert ("'two' is no whole number\n" in ran.err) == (number == "two")


@pytest.mark.parametrize("size", ["much", "0", "-1GB", "2 PiB"])
def test_impossible_size_is_the_command_line_s_fault(run, size):
    ran = run("build", "--target", "x", "--memory", size)
    assert ran.code == 2
    assert f"`{size}` is no size" in ran.err


def _takers() -> list[tuple[str, str]]:
    """Every command and option that takes a value, and every argument."""
    return [
        (entry.name, param.opts[0] if isinstance(param, click.Option) else "")
        for entry in COMMANDS
        for param in group().get_command(click.Context(group()), entry.name).params
        if not getattr(param, "is_flag", False) and param.nargs == 1
    ]


@pytest.mark.parametrize(("name", "option"), _takers())
def test_empty_value_is_what_an_unset_variable_leaves(run, in_folder, name, option):
    ran = run(name, *((option, "") if option else ("",)))
    assert ran.code == 2
    assert re.match(r"error: `[^`]+` is empty\ncause: nothing is called so; a variable of the shell", ran.err), ran.err
    assert not list(in_folder.iterdir())


def test_quiet_and_verbose_exclude_each_other(run):
    ran = run("doctor", "-q", "-v")
    assert ran.code == 2
    assert "`-q` and `-v` exclude each other" in ran.err


def test_error_has_four_labels_in_order(run, ending):
    ending(MtpforgeError("what", where="where", why="why", fix="type `this`", code=errors.INPUT))
    ran = run("doctor")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == "error: what\nwhere: where\ncause: why\n hint: type `this`\n"


@pytest.mark.parametrize("code", [c for c in errors.EXIT_CODES if c not in (errors.DONE, errors.INTERRUPTED)])
def test_exit_code_of_an_error_is_its_own(run, ending, code):
    ending(MtpforgeError("what", code=code))
    assert run("doctor").code == code


def test_name_out_of_a_checkpoint_cannot_steer_the_terminal(run, ending):
    ending(MtpforgeError("bad \x1b[2J name"))
    assert run("doctor").err == "error: bad \\x1b[2J name\n"


def test_json_document_has_the_envelope(run):
    ran = run("doctor", "--json")
    assert list(ran.document)[:5] == ["mtpforge", "schema", "command", "ok", "exit_code"]
    assert ran.document["mtpforge"] == mtpforge.__version__
    assert (ran.document["schema"], ran.document["command"], ran.document["ok"]) == (1, "doctor", ran.code == 0)
    assert ran.err == ""


@pytest.mark.parametrize("argv", [("--json", "doctor"), ("doctor", "--json")])
def test_general_options_may_stand_on_either_side(run, argv):
    assert run(*argv).document["command"] == "doctor"


def test_general_options_can_come_from_the_environment(run, monkeypatch):
    monkeypatch.setenv("MTPFORGE_JSON", "1")
    assert run("doctor").document["command"] == "doctor"


def test_option_of_a_command_can_come_from_the_environment(run, monkeypatch):
    monkeypatch.setenv("MTPFORGE_BUILD_TP", "0")
    ran = run("build", "--target", "x")
    assert ran.code == 2
    assert "'--tp'" in ran.err


def test_json_document_is_printed_on_failure(run, ending):
    ending(MtpforgeError("what", where="where", why="why", fix="fix", code=errors.REMOTE))
    ran = run("doctor", "--json")
    assert ran.code == 4
    assert ran.document == {
        "mtpforge": mtpforge.__version__,
        "schema": 1,
        "command": "doctor",
        "ok": False,
        "exit_code": 4,
        "error": {"what": "what", "where": "where", "cause": "why", "hint": "fix"},
    }


@pytest.mark.parametrize("argv", [("biuld", "--json"), ("build", "--nonsense", "--json")])
def test_json_document_is_printed_for_a_line_that_does_not_parse(run, argv):
    ran = run(*argv)
    assert ran.document["exit_code"] == ran.code == 2


def test_unknown_exception_is_one_line_and_a_file(run, ending, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    ending(ZeroDivisionError("surprise"))
    ran = run("doctor")
    assert ran.code == 70
    (file,) = tmp_path.glob("mtpforge-*.traceback.txt")
    assert ran.err == (
        "error: a bug in mtpforge: ZeroDivisionError: surprise\n"
        f" hint: the traceback is in {file}: report it with that file\n"
    )
    assert "mtpforge doctor" in file.read_text()
    assert "ZeroDivisionError: surprise" in file.read_text()


def test_debug_prints_the_traceback_and_saves_none(run, ending, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ending(ZeroDivisionError("surprise"))
    ran = run("doctor", "--debug")
    assert ran.code == 70
    assert "Traceback (most recent call last)" in ran.err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(run, ending):
    ending(KeyboardInterrupt())
    ran = run("doctor", "--color", "never")
    assert ran.code == 130
    assert ran.err == (
        "error: interrupted\ncause: nothing was written\n hint: start it again: `mtpforge doctor --color never`\n"
    )


def test_interrupt_that_the_library_describes_keeps_its_words(run, ending):
    ending(MtpforgeError("interrupted", why="3 steps are kept", fix="again", code=errors.INTERRUPTED))
    ran = run("doctor")
    assert ran.code == 130
    assert ran.err == "error: interrupted\ncause: 3 steps are kept\n hint: start it again: `mtpforge doctor`\n"


@pytest.mark.parametrize(
    ("number", "code", "what"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signal_ends_a_process_with_its_code(number, code, what):
    program = (
        "import sys, time; from mtpforge.cli import main; from mtpforge.drafting import machine\n"
        "def versions():\n    print('ready', flush=True); time.sleep(60)\n"
        "machine.versions = versions; sys.exit(main(['doctor']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        _, err = child.communicate(timeout=30)
    assert child.returncode == code
    assert err.startswith(f"error: {what}\n")


def test_closed_pipe_is_quiet():
    program = (
        "import sys; from mtpforge.cli import main; from mtpforge.drafting import machine\n"
        "machine.versions = lambda: {f'package-{n}': '1' for n in range(5_000)}; sys.exit(main(['doctor', '--json']))"
    )
    # without a buffer, Python takes half a write to a closed pipe for a whole one
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        child.stdout.read(1)
        child.stdout.close()
        assert (child.wait(timeout=30), child.stderr.read()) == (141, b"")


def test_color_marks_only_on_demand(run, ending, monkeypatch):
    ending(MtpforgeError("what", fix="type `this`"))
    assert "\x1b[" not in run("doctor").err
    assert "\x1b[" in run("doctor", "--color", "always").err
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in run("doctor", "--color", "always").err


def test_name_that_the_terminal_cannot_show_is_no_crash():
    program = (
        "import sys; from mtpforge.cli import main; from mtpforge.drafting import machine\n"
        "machine.versions = lambda: {'\\u65e5': '1'}; sys.exit(main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("\\u65e5")


def test_public_names_are_loaded_on_first_use():
    program = "import sys, mtpforge; mtpforge.MtpforgeError; print(sorted(m for m in sys.modules if 'mtpforge.' in m))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "['mtpforge.errors']\n"


def test_main_returns_its_exit_code():
    assert main(["--version"]) == 0


def test_version_starts_with_our_own(run):
    assert run("--version").out.startswith(f"mtpforge {mtpforge.__version__}\n")
