"""The child process in which an engine is asked: an interpreter that has it, and of mtpforge its `loader` alone.

The child runs beside the engine's own pins: of mtpforge it sees the engine's `loader` and `loading`, no more.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

from mtpforge import errors
from mtpforge.errors import MtpforgeError, shown
from mtpforge.report import Check

# Headers of a full-size draft take 15 s on two cores, imports included; values read from a slow disk take minutes.
TIMEOUT_SECONDS: Final = 1800
_PROBE_SECONDS: Final = 60
# The exit code of a loader where its engine is not there; one that cannot be imported ends with another.
_NOT_INSTALLED: Final = 2
LOADS: Final = "engine loads the draft"  # the check that each engine's loader answers first
_ABSENT: Final = "no engine found to ask"
_HERE: Final = Path(__file__).parent
_PACKAGE: Final = __name__.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Loader:
    """The check by one engine's loader.

    shown: the engine, for people. package: as Python imports it. folder: of ours, that holds `loader`. environment:
    variables that the child is given, of the temporary folder that is its own. reads_headers: quant_methods of targets
    whose safetensors headers the engine reads too.
    """

    shown: str
    package: str
    folder: str
    environment: Callable[[Path], Mapping[str, str]]
    reads_headers: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether the engine can be found in this interpreter; it is not imported."""
        return importlib.util.find_spec(self.package) is not None


class Findings(TypedDict):
    """The child's report."""

    accepted: bool
    complete: bool
    errors: list[str]
    notes: list[str]
    defaulted: list[str]
    facts: dict[str, object]


def refuse_no_program(python: str | None, *, several: bool = True) -> None:
    """MtpforgeError, code MACHINE, where a named interpreter, or one of two, is none: before anything that takes long.

    Whether an engine is in it is seen when it is asked. several: whether two may be named.
    """
    if python is None or _program(python) is not None:
        return
    each = python.split(os.pathsep)
    missing = next((path for path in each if _program(path) is None), "")
    if missing or not several:
        raise _no_program(missing or python, "the engine", several=len(each) > 1)


def _program(python: str) -> str | None:
    return shutil.which(os.path.expanduser(python))  # noqa: PTH111 -- Path's raises where nobody is called so


def interpreter(loader: Loader, python: str | None) -> str:
    """Absolute path of the named one, None for this one; MtpforgeError, code MACHINE, without program or engine."""
    if python is None:
        if not loader.is_installed:
            raise _no_engine(loader.shown, f"{loader.shown} is not installed beside {sys.executable}")
        return sys.executable
    found = _program(python)
    if found is None:
        raise _no_program(python, loader.shown)
    return str(Path(found).absolute())


def _no_program(python: str, engine: str, *, several: bool = False) -> MtpforgeError:
    error = _no_engine(engine, f"no program {shown(python)}", where="--engine-python")
    if several and os.pathsep in python:
        error.fix = f"`--engine both` asks two, each by its own, `--engine-python PATH{os.pathsep}PATH`; else name one"
    return error


def _no_engine(engine: str, why: str, where: str = "") -> MtpforgeError:
    return MtpforgeError(
        _ABSENT,
        where=where,
        why=why,
        fix=f"name an interpreter in which {engine} is installed: `--engine-python PATH`",
        code=errors.MACHINE,
    )


def is_absent(error: MtpforgeError) -> bool:
    """Whether an engine was not asked because it is not there, not because it failed."""
    return error.what == _ABSENT


def not_asked(error: MtpforgeError) -> Check:
    """The check of an engine that could not be asked."""
    what = ": ".join(filter(None, (error.what, error.why or error.where)))
    return Check(LOADS, "not checked", what, error.fix)


def module_of(loader: Loader, home: Path) -> str:
    """The module that the child runs, in a package of `home` that is called mtpforge and holds nothing else of ours."""
    *above, _ = parts = [*_PACKAGE.split("."), loader.folder]
    for depth in range(1, len(parts) + 1):
        package = home.joinpath(*parts[:depth])
        package.mkdir()
        (package / "__init__.py").touch()
    home.joinpath(*above, "loading").symlink_to(_HERE / "loading", target_is_directory=True)
    home.joinpath(*parts, "loader").symlink_to(_HERE / loader.folder / "loader", target_is_directory=True)
    return f"{_PACKAGE}.{loader.folder}.loader"


def ask(
    loader: Loader,
    interpreter: str,
    request: Any,  # noqa: ANN401  a dataclass, each loader's own
    home: Path,
    timeout_seconds: float,
    module: str = "",
    *,
    on_gpu: bool = False,
) -> Findings:
    """The child's report. module: of the loader, "" for its main one. on_gpu: whether it is shown the devices.

    Raises MtpforgeError with code MACHINE where no engine is found, it does not finish, or it dies.
    """
    question, answer, said = home / "request.json", home / "report.json", home / "output.txt"
    question.write_text(json.dumps(dataclasses.asdict(request)))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH")))),
        "PYTHONDONTWRITEBYTECODE": "1",  # the packages' folders may belong to someone else
        **loader.environment(home),
    }
    if not on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # the platform is stood in for: a real device would only take memory
    command = [interpreter, "-m", module_of(loader, home) + module, str(question), str(answer)]
    with said.open("wb") as output:
        try:
            code = _run(loader, command, home, environment, output.fileno(), timeout_seconds)
        except OSError as error:
            raise _no_engine(
                loader.shown, f"{shown(interpreter)} cannot be run: {error.strerror}", where="--engine-python"
            ) from error
    if not answer.exists():
        _refuse_no_python(loader, interpreter)
    last_words = " ".join(said.read_text(errors="replace").split())[-500:]
    if code == _NOT_INSTALLED:
        raise _no_engine(loader.shown, f"{loader.shown} cannot be imported by {interpreter}: {shown(last_words)}")
    if code != 0 or not answer.exists():
        raise MtpforgeError(
            "the engine's loader ended without a verdict",
            where=interpreter,
            why=f"exit {code}: {shown(last_words)}",
            fix=_by_hand(loader, interpreter),
            code=errors.MACHINE,
        )
    findings: Findings = json.loads(answer.read_text())
    return findings


def _refuse_no_python(loader: Loader, interpreter: str) -> None:
    """MtpforgeError for a program that runs no Python: what it says of our files helps nobody."""
    probe = [interpreter, "-c", "import sys"]
    try:
        subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS, check=True)
    except subprocess.CalledProcessError:
        raise _no_engine(
            loader.shown, f"{shown(interpreter)} is no Python interpreter", where="--engine-python"
        ) from None
    except subprocess.TimeoutExpired:
        return  # it is one, or waits for something: the caller says how it ended


def _by_hand(loader: Loader, interpreter: str) -> str:
    return f'try that installation by hand: `{interpreter} -c "import {loader.package}"`'


def _run(
    loader: Loader, command: list[str], cwd: Path, environment: dict[str, str], output: int, timeout_seconds: float
) -> int:
    """The exit code."""
    with _child(command, cwd, environment, output) as child:
        try:
            return child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise MtpforgeError(
                f"the engine's loader did not finish within {timeout_seconds:.0f} s",
                where=command[0],
                why="the machine is busy, or the engine's installation waits for something",
                fix=_by_hand(loader, command[0]),
                code=errors.MACHINE,
            ) from None


@contextmanager
def _child(
    command: list[str], cwd: Path, environment: dict[str, str], output: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A child with a session of its own, so that what it started ends with it."""
    child = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
