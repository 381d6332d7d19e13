"""Ctrl-C at awkward moments: one line, 130, nothing swallowed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from mtpforge.cli import main
from mtpforge.cli.output import Screen
from mtpforge.cli.stopping import Stop, TerminatedError
from mtpforge.report import Progress

SLOW = """
import time
print("loading", flush=True)
end = time.monotonic() + {seconds}
try:
    while time.monotonic() < end:
        pass
except BaseException as error:
    print("swallowed", type(error).__name__, flush=True)
"""


@pytest.fixture
def stopped(tmp_path):
    """Runs `mtpforge doctor` with a body for `versions` and interrupts it at its first line: code, stdout, stderr."""

    def stopped_(body: str, number: int = signal.SIGINT, seconds: float = 1.0) -> tuple[int, str, str]:
        (tmp_path / "slow_library.py").write_text(SLOW.format(seconds=seconds))
        program = (
            "import sys, time\nfrom mtpforge.cli import main\nfrom mtpforge.drafting import machine\n"
            f"def versions():\n    {body}\n    return {{'a': '1'}}\n"
            "machine.versions = versions\nsys.exit(main(['doctor']))"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        ) as child:
            assert child.stdout.readline() == "loading\n"
            child.send_signal(number)
            out, err = child.communicate(timeout=30)
        return child.returncode, out, err

    return stopped_


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_waits_for_the_end_of_an_import(stopped, number, code):
    found, out, err = stopped("import slow_library; time.sleep(20)", number)
    assert (found, out) == (code, "")  # the library saw nothing of it
    assert err.count("\n") == 3


def test_interrupt_that_a_library_swallowed_still_ends_the_command(stopped):
    body = "print('loading', flush=True)\n    try:\n        time.sleep(20)\n    except BaseException:\n        pass"
    assert stopped(body)[0] == 130


def test_interrupt_that_left_as_another_error_is_no_bug(stopped):
    body = (
        "print('loading', flush=True)\n    try:\n        time.sleep(20)\n"
        "    except BaseException:\n        raise RuntimeError('release unlocked lock')"
    )
    code, _, err = stopped(body)
    assert code == 130
    assert err.startswith("error: interrupted\n")


def test_second_interrupt_does_not_wait(monkeypatch):
    stop = Stop()
    monkeypatch.setattr("mtpforge.cli.stopping._is_importing", lambda frame: True)
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(TerminatedError):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (TerminatedError, 143)])
def test_stop_before_any_step_speaks_of_no_finished_steps(run, in_folder, tinyglm, monkeypatch, stop, code):
    def fetch(*_):
        raise stop

    monkeypatch.setattr("mtpforge.building.building._fetch", fetch)
    ran = run("build", "--target", tinyglm("awq-int4"), "--source", tinyglm("nvfp4"), "-o", "draft")
    assert ran.code == code
    assert "cause: no step was finished, nothing is kept\n" in ran.err
    assert " hint: start it again: `mtpforge build " in ran.err
    assert not list(in_folder.iterdir())


def test_progress_raises_again_what_was_swallowed():
    """A verify of twenty gigabytes must not go on to its end."""
    screen = Screen()
    with screen.stop.listening():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with screen.progress() as on_progress, pytest.raises(KeyboardInterrupt):
            on_progress(Progress("verify", 1, 2))


def test_interrupt_while_the_program_is_loaded_is_one_line():
    program = (
        "import os, signal, sys\nimport mtpforge.__main__ as program\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mtpforge.cli': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\nsys.exit(program.main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_elsewhere_than_in_the_main_thread_no_signal_is_taken():
    codes = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: codes.append(main(["completion", "bash", "--json"])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert signal.getsignal(signal.SIGINT) == before


def test_handlers_are_put_back(run):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    run("completion", "bash")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before


def test_what_cleans_up_is_not_interrupted_by_the_same_signal(monkeypatch):
    """The look at whether an import has ended must not come again after the exception was raised elsewhere."""
    monkeypatch.setattr("mtpforge.cli.stopping._is_importing", lambda frame: True)
    stop = Stop()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr("mtpforge.cli.stopping._is_importing", lambda frame: False)
        with pytest.raises(KeyboardInterrupt):
            stop.leave_if_asked()
        try:
            time.sleep(0.15)  # three looks
        except KeyboardInterrupt:
            pytest.fail("raised once more")
