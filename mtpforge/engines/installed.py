"""Asks an installed engine's own loader about a draft, in a child process of that engine's interpreter.

The child runs the engine's `loader` beside the engine's own pins: of mtpforge it sees that folder and `loading`, no
more. No GPU is needed or touched.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict

from mtpforge import errors
from mtpforge.engines.loading.device import Device
from mtpforge.errors import MtpforgeError, shown
from mtpforge.report import Check, Report
from mtpforge.tensors import TensorRef

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint

Target: TypeAlias = "Path | Mapping[str, object] | Checkpoint"

# Headers of a full-size draft take 15 s on two cores, imports included; values read from a slow disk take minutes.
TIMEOUT_SECONDS: Final = 1800
# Findings that become checks of their own; facts["errors"] holds all of them.
MAX_CHECKS: Final = 20
# The exit code of a loader where its engine cannot be imported.
_NOT_INSTALLED: Final = 2
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


def check(
    loader: Loader,
    target: Target,
    request: Callable[[Path], Any],
    python: str | None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Report:
    """The verdict of an engine's own loader; command "validate".

    request: what is asked, a dataclass, of the folder in which the target lies. python: an interpreter in which the
    engine is installed, None for this one. Raises MtpforgeError with code MACHINE where no engine is found, it does not
    finish, or it dies.
    """
    interpreter = _interpreter(loader, python)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mtpforge-validate-") as folder:
        home = Path(folder)
        served = as_folder(target, home / "target", loader.reads_headers)
        findings = _ask(loader, interpreter, request(served), home, timeout_seconds)
    return _report(loader, findings, time.monotonic() - start)


def tables(
    loader: Loader, capability: int, python: str | None, timeout_seconds: float = TIMEOUT_SECONDS
) -> Mapping[str, object]:
    """What an engine's own tables take at a compute capability, as 90: the facts of its `loader.tables`.

    Raises MtpforgeError with code MACHINE where no engine is found, it does not finish, or it dies.
    """
    interpreter = _interpreter(loader, python)
    with tempfile.TemporaryDirectory(prefix="mtpforge-doctor-") as folder:
        home = Path(folder)
        return _ask(loader, interpreter, Device(capability), home, timeout_seconds, ".tables")["facts"]


def refuse_no_program(python: str | None) -> None:
    """MtpforgeError, code MACHINE, where a named interpreter, or one of two, is none: before anything that takes long.

    Whether an engine is in it is seen when it is asked.
    """
    if python is None or _program(python) is not None:
        return
    for each in python.split(os.pathsep):
        if _program(each) is None:
            raise _no_program(each, "the engine")


def _program(python: str) -> str | None:
    return shutil.which(Path(python).expanduser())


def _interpreter(loader: Loader, python: str | None) -> str:
    if python is None:
        if not loader.is_installed:
            raise _no_engine(loader.shown, f"{loader.shown} is not installed beside {sys.executable}")
        return sys.executable
    found = _program(python)
    if found is None:
        raise _no_program(python, loader.shown)
    return str(Path(found).absolute())


def _no_program(python: str, engine: str) -> MtpforgeError:
    return _no_engine(engine, f"no program {shown(python)}", where="--engine-python")


def _no_engine(engine: str, why: str, where: str = "") -> MtpforgeError:
    return MtpforgeError(
        "no engine found to ask",
        where=where,
        why=why,
        fix=f"name an interpreter in which {engine} is installed: `--engine-python PATH`",
        code=errors.MACHINE,
    )


def as_folder(target: Target, home: Path, reads_headers: Iterable[str] = ()) -> Path:
    """A folder that an engine can open as the target: its own, or `home`, into which what is known is laid out."""
    if isinstance(target, Path):
        if target.is_dir():
            return target.absolute()
        side = target.with_name("hf_quant_config.json")
        home.mkdir()
        shutil.copy(target, home / "config.json")
        if target.name == "config.json" and side.exists():
            shutil.copy(side, home)
        return home
    if isinstance(target, Mapping):
        _lay_out(home, target, {}, ())
        return home
    if Path(target.location).is_dir():
        return Path(target.location)
    method = str(target.quantization.get("quant_method", ""))
    refs = target.locate(target.names).values() if target.has_headers and method in reads_headers else ()
    _lay_out(home, target.config, target.quantization, refs)
    return home


def _lay_out(
    home: Path, config: Mapping[str, object], quantization: Mapping[str, object], refs: Iterable[TensorRef]
) -> None:
    """config.json with the quantization block that is in force; one sparse file with the headers of `refs`."""
    home.mkdir()
    block = {"quantization_config": dict(quantization)} if "quant_method" in quantization else {}
    (home / "config.json").write_text(json.dumps({**config, **block}))
    if (
        "quantization" in quantization
    ):  # ModelOpt's side file, whole: the engine reads it where config.json has no block
        (home / "hf_quant_config.json").write_text(json.dumps(dict(quantization)))
    header: dict[str, object] = {}
    end = 0
    for ref in refs:
        start, end = end, end + ref.stop - ref.start
        header[ref.name] = {"dtype": ref.spec.dtype, "shape": list(ref.spec.shape), "data_offsets": [start, end]}
    if header:
        text = json.dumps(header).encode()
        with (home / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)


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


def _ask(
    loader: Loader,
    interpreter: str,
    request: Any,  # noqa: ANN401  a dataclass, each loader's own
    home: Path,
    timeout_seconds: float,
    module: str = "",
) -> Findings:
    question, answer, said = home / "request.json", home / "report.json", home / "output.txt"
    question.write_text(json.dumps(dataclasses.asdict(request)))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH")))),
        "PYTHONDONTWRITEBYTECODE": "1",  # the packages' folders may belong to someone else
        "CUDA_VISIBLE_DEVICES": "",  # the platform is stood in for: a real device would only take memory
        **loader.environment(home),
    }
    command = [interpreter, "-m", module_of(loader, home) + module, str(question), str(answer)]
    with said.open("wb") as output:
        try:
            code = _run(loader, command, home, environment, output.fileno(), timeout_seconds)
        except OSError as error:
            raise _no_engine(
                loader.shown, f"{shown(interpreter)} cannot be run: {error.strerror}", where="--engine-python"
            ) from error
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


def _report(loader: Loader, findings: Findings, seconds: float) -> Report:
    facts = findings["facts"] | {
        "errors": findings["errors"],
        "notes": findings["notes"],
        "defaulted": findings["defaulted"],
        "seconds": round(seconds, 1),
    }
    versions = facts.get("versions")
    version = versions.get(loader.package, "?") if isinstance(versions, dict) else "?"
    loads = Check(
        "engine loads the draft",
        "passed" if findings["accepted"] else "failed",
        f"{loader.shown} {version}: {facts.get('class', 'refused before its class was built')}"
        if findings["accepted"]
        else f"{loader.shown} {version} refuses it: {findings['errors'][0]}",
        "" if findings["accepted"] else "{anew}",  # whoever knows the command puts it in
    )
    found = findings["errors"] if findings["accepted"] else findings["errors"][1:]
    checks = [loads, *(Check("draft is complete", "failed", text) for text in found[:MAX_CHECKS])]
    if len(found) > MAX_CHECKS:
        checks.append(Check("draft is complete", "failed", f"and {len(found) - MAX_CHECKS} more of this kind"))
    if findings["complete"]:
        parameters = facts["parameters"]
        if not isinstance(parameters, dict):
            raise TypeError(parameters)
        checks.append(
            Check(
                "draft is complete",
                "passed",
                f"{facts['tensors']} tensors, {parameters['loaded']} of {parameters['total']} parameters loaded",
            )
        )
    return Report("validate", tuple(checks), facts=facts)
