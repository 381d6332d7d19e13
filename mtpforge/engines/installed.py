"""Asks an installed engine about a draft: its own loader, without a GPU, and where there is one a pass of its own."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mtpforge.engines import child
from mtpforge.engines.child import TIMEOUT_SECONDS, Findings, Loader
from mtpforge.engines.loading.device import Device
from mtpforge.report import Check, Report
from mtpforge.tensors import TensorRef

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint

Target: TypeAlias = "Path | Mapping[str, object] | Checkpoint"

# Findings that become checks of their own; facts["errors"] holds all of them.
MAX_CHECKS: Final = 20


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
    start = time.monotonic()
    findings = _beside(loader, target, request, python, timeout_seconds)
    return _report(loader, findings, time.monotonic() - start)


def tables(
    loader: Loader, capability: int, python: str | None, timeout_seconds: float = TIMEOUT_SECONDS
) -> Mapping[str, object]:
    """What an engine's own tables take at a compute capability, as 90: the facts of its `loader.tables`.

    Raises MtpforgeError with code MACHINE where no engine is found, it does not finish, or it dies.
    """
    interpreter = child.interpreter(loader, python)
    with tempfile.TemporaryDirectory(prefix="mtpforge-doctor-") as folder:
        home = Path(folder)
        return child.ask(loader, interpreter, Device(capability), home, timeout_seconds, ".tables")["facts"]


def forward(
    loader: Loader,
    target: Target,
    request: Callable[[Path], Any],
    python: str | None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Findings:
    """What an engine reports of one pass on the GPU that it is shown, `engine` in its facts; its `loader.forward`.

    Raises as `check` does.
    """
    found = _beside(loader, target, request, python, timeout_seconds, ".forward", on_gpu=True)
    found["facts"]["engine"] = f"{loader.shown} {_version(loader, found)}"
    return found


def _beside(
    loader: Loader,
    target: Target,
    request: Callable[[Path], Any],
    python: str | None,
    timeout_seconds: float,
    module: str = "",
    *,
    on_gpu: bool = False,
) -> Findings:
    """What the child reports, asked beside a folder that holds what is known of the target."""
    interpreter = child.interpreter(loader, python)
    with tempfile.TemporaryDirectory(prefix="mtpforge-validate-") as folder:
        home = Path(folder)
        served = as_folder(target, home / "target", loader.reads_headers)
        return child.ask(loader, interpreter, request(served), home, timeout_seconds, module, on_gpu=on_gpu)


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


def _version(loader: Loader, findings: Findings) -> str:
    versions = findings["facts"].get("versions")
    return str(versions.get(loader.package, "?")) if isinstance(versions, dict) else "?"


def _report(loader: Loader, findings: Findings, seconds: float) -> Report:
    facts = findings["facts"] | {
        "errors": findings["errors"],
        "notes": findings["notes"],
        "defaulted": findings["defaulted"],
        "seconds": round(seconds, 1),
    }
    version = _version(loader, findings)
    loads = Check(
        child.LOADS,
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
