"""Asks an installed engine's own loader about a draft, in a child process.

The child runs `engines/vllm/loader` in the engine's interpreter, beside the engine's own pins: nothing of ours but that
folder is on its path. No GPU is needed or touched. Engine here: vLLM (written for and run with 0.33.0).
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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from mtpforge import errors
from mtpforge.engines.engine import Serving
from mtpforge.engines.vllm import loader
from mtpforge.engines.vllm.draft_classes import DraftClass, draft_class
from mtpforge.engines.vllm.loader.request import Request
from mtpforge.engines.vllm.serving import overrides
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.report import Check, Report
from mtpforge.tensors import TensorRef

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint

# Headers of a full-size draft take 15 s on two cores, imports included; values read from a slow disk take minutes.
TIMEOUT_SECONDS: Final = 1800
# Findings that become checks of their own; facts["errors"] holds all of them.
MAX_CHECKS: Final = 20
# vLLM reads these targets' safetensors headers where the config lists no modules (auto_awq.py, auto_gptq.py).
_READ_BY_HEADER: Final = ("awq", "gptq")
# The exit code of the loader where the engine cannot be imported.
_NOT_INSTALLED: Final = 2
_MODULE: Final = "mtpforge_loader"


class _Findings(TypedDict):
    """The child's report."""

    accepted: bool
    complete: bool
    errors: list[str]
    notes: list[str]
    defaulted: list[str]
    facts: dict[str, object]


def is_installed() -> bool:
    """Whether vLLM can be found in this interpreter; it is not imported."""
    return importlib.util.find_spec("vllm") is not None


def ask(draft: Path, target: Checkpoint, serving: Serving, python: str | None) -> Report:
    """What `check` says of a draft folder, loaded as it would be served."""
    return check(
        draft,
        target,
        python=python,
        tensor_parallel=serving.tensor_parallel,
        expert_parallel=serving.expert_parallel,
        overrides={**overrides(target), **serving.overrides},
    )


def check(
    draft: Path,
    target: Path | Mapping[str, object] | Checkpoint,
    *,
    python: str | None = None,
    meta: bool = True,
    tensor_parallel: int = 1,
    expert_parallel: bool = False,
    overrides: Mapping[str, object] | None = None,
    capability: int = 90,
    same_config: bool = True,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Report:
    """The verdict of the engine's own loader on a draft folder.

    target: a folder, a config.json, its content, or an open Checkpoint (of a hub repository config and, where the
    engine reads them, headers are laid out in a temporary folder). python: an interpreter in which vLLM is installed,
    None for this one. meta: headers only, no values. overrides: as for `--hf-overrides`. capability: of the device that
    the engine believes in. same_config: differences between the configs that do not stop the loading are errors.

    The Report (command "validate") passes only if the engine accepts the draft, loads every parameter and uses every
    tensor. Facts: versions, class, tensors, parameters, quantization, errors, notes, defaulted, seconds.
    Raises MtpforgeError with code MACHINE where no engine is found, it does not finish, or it dies.
    """
    interpreter = _interpreter(python)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mtpforge-validate-") as folder:
        home = Path(folder)
        served = _as_folder(target, home / "target")
        known = _class_of(served)
        request = Request(
            target=str(served),
            draft=str(draft.absolute()),
            meta=meta,
            tensor_parallel=tensor_parallel,
            expert_parallel=expert_parallel,
            overrides=dict(overrides or {}),
            capability=capability,
            same_config=same_config,
            compared={} if known is None else dict.fromkeys(known.required) | dict(known.defaults),
            built={}
            if known is None
            else {f.attribute: (name, f.value) for name, f in known.fixed.items() if f.attribute},
        )
        findings = _ask(interpreter, request, home, timeout_seconds)
    return _report(findings, time.monotonic() - start)


def _interpreter(python: str | None) -> str:
    if python is None:
        if not is_installed():
            raise _no_engine(f"vLLM is not installed beside {sys.executable}")
        return sys.executable
    found = shutil.which(Path(python).expanduser())
    if found is None:
        raise _no_engine(f"no program {shown(python)}", where="--engine-python")
    return str(Path(found).absolute())


def _no_engine(why: str, where: str = "") -> MtpforgeError:
    return MtpforgeError(
        "no engine found to ask",
        where=where,
        why=why,
        fix="name an interpreter in which vLLM is installed: `--engine-python PATH`",
        code=errors.MACHINE,
    )


def _as_folder(target: Path | Mapping[str, object] | Checkpoint, home: Path) -> Path:
    """A folder that the engine can open as the target."""
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
    refs = target.locate(target.names).values() if target.has_headers and method in _READ_BY_HEADER else ()
    _lay_out(home, target.config, target.quantization, refs)
    return home


def _class_of(target: Path) -> DraftClass | None:
    """The draft class of a target's family; None where there is none: what is wrong with it, the engine says."""
    try:
        return draft_class(family_of(json.loads((target / "config.json").read_text())))
    except (MtpforgeError, OSError, ValueError):
        return None


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


def _ask(interpreter: str, request: Request, home: Path, timeout_seconds: float) -> _Findings:
    question, answer, said = home / "request.json", home / "report.json", home / "output.txt"
    question.write_text(json.dumps(dataclasses.asdict(request)))
    # The one folder of ours that the child sees; its relative imports keep mtpforge itself out.
    (home / _MODULE).symlink_to(Path(loader.__file__).parent, target_is_directory=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH")))),
        "PYTHONDONTWRITEBYTECODE": "1",  # the package's folder may belong to someone else
        "VLLM_CACHE_ROOT": str(home / "cache"),
        "CUDA_VISIBLE_DEVICES": "",  # the platform is stood in for: a real device would only take memory
    }
    command = [interpreter, "-m", _MODULE, str(question), str(answer)]
    with said.open("wb") as output:
        try:
            code = _run(command, home, environment, output.fileno(), timeout_seconds)
        except OSError as error:
            raise _no_engine(
                f"{shown(interpreter)} cannot be run: {error.strerror}", where="--engine-python"
            ) from error
    last_words = " ".join(said.read_text(errors="replace").split())[-500:]
    if code == _NOT_INSTALLED:
        raise _no_engine(f"vLLM cannot be imported by {interpreter}: {shown(last_words)}")
    if code != 0 or not answer.exists():
        raise MtpforgeError(
            "the engine's loader ended without a verdict",
            where=interpreter,
            why=f"exit {code}: {shown(last_words)}",
            fix=f'try that installation by hand: `{interpreter} -c "import vllm"`',
            code=errors.MACHINE,
        )
    findings: _Findings = json.loads(answer.read_text())
    return findings


def _run(command: list[str], cwd: Path, environment: dict[str, str], output: int, timeout_seconds: float) -> int:
    """The exit code. The child has a session of its own, so that what it started ends with it."""
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
        return child.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        raise MtpforgeError(
            f"the engine's loader did not finish within {timeout_seconds:.0f} s",
            where=command[0],
            why="the machine is busy, or the engine's installation waits for something",
            fix=f'try that installation by hand: `{command[0]} -c "import vllm"`',
            code=errors.MACHINE,
        ) from None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _report(findings: _Findings, seconds: float) -> Report:
    facts = findings["facts"] | {
        "errors": findings["errors"],
        "notes": findings["notes"],
        "defaulted": findings["defaulted"],
        "seconds": round(seconds, 1),
    }
    versions = facts.get("versions")
    version = versions.get("vllm", "?") if isinstance(versions, dict) else "?"
    loads = Check(
        "engine loads the draft",
        "passed" if findings["accepted"] else "failed",
        f"vLLM {version}: {facts.get('class', 'refused before its class was built')}"
        if findings["accepted"]
        else f"vLLM {version} refuses it: {findings['errors'][0]}",
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
