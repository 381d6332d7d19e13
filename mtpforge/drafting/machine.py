"""What this machine has: versions, read from package metadata, nothing imported; and what it computes with."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

from mtpforge.drafting import devices
from mtpforge.engines import ENGINES
from mtpforge.report import Check, Report

_NEEDED: Final = ("torch", "safetensors", "compressed-tensors", "nvidia-modelopt", "transformers", "huggingface_hub")
_LEAST: Final = re.compile(r"([\w.-]+)\s*>=\s*([\d.]+)")


def doctor() -> Report:
    """GPUs, memory, disk; Python, the libraries, the engines beside it: what is missing or too old has failed."""
    return Report("doctor", (*(_check(name, found) for name, found in versions().items()), *devices.checks()))


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


def _least() -> dict[str, str]:
    """The oldest version that mtpforge's own metadata allows, by name."""
    try:
        rows = requires("mtpforge") or []
    except PackageNotFoundError:
        return {}
    return {found[1]: found[2] for row in rows if (found := _LEAST.match(row))}


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text.partition("+")[0])[:3])
