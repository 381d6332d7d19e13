"""What this machine has: versions, by package metadata, nothing imported; what it computes with, by which engine."""

from __future__ import annotations

import ctypes
import platform
import re
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from typing import Final

from mtpforge.drafting import devices, kernels
from mtpforge.engines import ENGINES
from mtpforge.engines.child import refuse_no_program
from mtpforge.report import Check, Report

_NEEDED: Final = ("torch", "safetensors", "compressed-tensors", "nvidia-modelopt", "transformers", "huggingface_hub")
_EXTRA: Final = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")
_NAME: Final = re.compile(r"[\w.-]+")
_OURS: Final = ("dev", "docs")
_LEAST: Final = re.compile(r"([\w.-]+)\s*>=\s*([\d.]+)")


def doctor(engine_python: str | None = None) -> Report:
    """GPUs, memory, disk; Python, the libraries, the engines beside it: what is missing or too old has failed.

    engine_python: interpreters, PATH:PATH for two, whose engines are asked what they take at this GPU's capability;
    MtpforgeError where one has none; of one that is asked, another row tells the version. Facts: gpus, and the engines'
    own tables by name.
    """
    refuse_no_program(engine_python)
    found = devices.gpus()
    tables, broken = kernels.tables(found, engine_python)
    asked = {engine.package for engine in ENGINES.values() if engine.name in tables}
    here = {name: found_ for name, found_ in versions().items() if found_ or name not in asked}
    libraries = (*(_check(name, found_) for name, found_ in here.items()), *_extras(), _nccl())
    checks = (*libraries, *devices.checks(found), *kernels.checks(found, tables, broken))
    return Report("doctor", checks, facts={"gpus": [] if isinstance(found, str) else list(found), "engines": tables})


def versions() -> dict[str, str]:
    """Name -> version; "" for what is not installed."""
    found = {"mtpforge": _version("mtpforge") or "0+source", "Python": platform.python_version()}
    return found | {name: _version(name) for name in (*_NEEDED, *_engines())}


def _engines() -> tuple[str, ...]:
    return tuple(engine.package for engine in ENGINES.values())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _check(name: str, found: str) -> Check:
    least = _least().get(name, "")
    if name in _engines() and not found:
        return Check(
            name,
            "not checked",
            "not installed here",
            "`mtpforge validate` asks another interpreter with `--engine-python PATH`",
        )
    if not found:
        return Check(name, "failed", "not installed", f"`pip install {name}`")
    if least and _numbers(found) < _numbers(least):
        return Check(name, "failed", f"{found}, needed is {least} or newer", f'`pip install "{name}>={least}"`')
    return Check(name, "passed", found)


def _extras() -> tuple[Check, ...]:
    """What users may install beside, by the extra that brings it; those of development aside."""
    try:
        rows = requires("mtpforge") or []
    except PackageNotFoundError:
        return ()
    found: list[Check] = []
    for row in rows:
        extra, name = _EXTRA.search(row), _NAME.match(row)
        if extra and name and extra[1] not in _OURS:
            held = _version(name[0])
            told = held or f"not installed; `pip install 'mtpforge[{extra[1]}]'` brings it"
            found.append(Check(f"{name[0]}, for {extra[1]}", "passed" if held else "not checked", told))
    return tuple(found)


def _nccl() -> Check:
    """By the package that torch brings, else by the system's library."""
    named = sorted(str(each.metadata["Name"]) for each in distributions() if each.metadata["Name"])
    for name in named:
        if name.startswith("nvidia-nccl"):
            return Check("NCCL", "passed", f"{_version(name)} ({name})")
    try:
        number = ctypes.c_int()
        ctypes.CDLL("libnccl.so.2").ncclGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return Check("NCCL", "not checked", "none in this environment; servers on several GPUs bring their own")
    major, rest = divmod(number.value, 10_000)  # NCCL_VERSION of nccl.h, from 2.9 on
    return Check("NCCL", "passed", f"{major}.{rest // 100}.{rest % 100} (libnccl.so.2)")


def _least() -> dict[str, str]:
    """The oldest version that mtpforge's own metadata allows, by name."""
    try:
        rows = requires("mtpforge") or []
    except PackageNotFoundError:
        return {}
    return {found[1]: found[2] for row in rows if (found := _LEAST.match(row))}


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text.partition("+")[0])[:3])
