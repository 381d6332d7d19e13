"""Which schemes an installed engine has kernels for at this machine's capability, by that engine's own tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from mtpforge.drafting.devices import Gpu
from mtpforge.engines import ENGINES
from mtpforge.engines.child import is_absent
from mtpforge.errors import MtpforgeError, shown
from mtpforge.report import Check

_NO_GPU: Final = 90  # what an engine is asked by where there is none: only its least capabilities are told then
_WIDE: Final = 90  # characters of a line of names
_NAMED: Final = {"methods": "quantization", "schemes": "compressed-tensors"}


def tables(
    found: tuple[Gpu, ...] | str, python: str | None
) -> tuple[dict[str, Mapping[str, object]], dict[str, MtpforgeError]]:
    """By an engine's name what its tables say, asked in these interpreters, PATH:PATH, and why those of others do not.

    Its interpreter is told beside them, as `python`.
    An engine that an interpreter lacks is in neither; nothing for None. MtpforgeError where no engine of one answers.
    """
    told: dict[str, Mapping[str, object]] = {}
    broken: dict[str, MtpforgeError] = {}
    for path in [] if python is None else python.split(os.pathsep):
        answers: dict[str, Mapping[str, object]] = {}
        failed: dict[str, MtpforgeError] = {}
        for engine in ENGINES.values():
            try:
                answers[engine.name] = {**engine.tables(_capability(found) or _NO_GPU, path), "python": path}
            except MtpforgeError as error:
                failed[engine.name] = error
        if not answers:
            raise min(failed.values(), key=is_absent)  # what is there and fails, before what is not there
        told |= answers
        broken |= {name: error for name, error in failed.items() if not is_absent(error)}
    return told, {name: error for name, error in broken.items() if name not in told}


def checks(
    found: tuple[Gpu, ...] | str, told: Mapping[str, Mapping[str, object]], broken: Mapping[str, MtpforgeError]
) -> tuple[Check, ...]:
    """Who was asked; what each engine takes and what it wants a newer GPU for; without a GPU the least capabilities."""
    if not told:
        fix = "`mtpforge doctor --engine-python PATH` asks the engine of that interpreter"
        return (Check("kernels", "not checked", "no engine was asked what it runs at this GPU's capability", fix),)
    capability = _capability(found)
    rows: list[Check] = []
    for engine, facts in told.items():
        rows.append(Check(f"{engine}, asked", "passed", _asked(engine, facts, capability)))
        for key, label in _NAMED.items():
            rows += _taken(f"{engine}, {label}", _numbers(facts.get(key)), capability)
        rows += _missing(engine, facts.get("missing"))
        kinds = facts.get("kernels")
        if capability is not None and isinstance(kinds, Mapping):
            for kind, names in kinds.items():
                rows += _kernels(f"{engine}, {kind}", [str(name) for name in names])
    for engine, error in broken.items():
        said = ": ".join(filter(None, (error.what, error.why)))
        rows.append(Check(f"{engine}, tables", "not checked", said, error.fix))
    return tuple(rows)


def _missing(engine: str, found: object) -> Iterator[Check]:
    """What an engine lists and cannot ask: mostly a library that it needs is not there."""
    if isinstance(found, Mapping) and found:
        told = "; ".join(f"{name} ({shown(str(why))})" for name, why in found.items())
        yield Check(f"{engine}, not asked", "not checked", told)


def _capability(found: tuple[Gpu, ...] | str) -> int | None:
    """Of the oldest GPU, as 90; None where none is known."""
    if isinstance(found, str):
        return None
    return min(int(major) * 10 + int(minor or 0) for major, _, minor in (g.capability.partition(".") for g in found))


def versions_of(facts: Mapping[str, object]) -> dict[str, str]:
    """Package -> version, of the engine's interpreter: its own and torch's; {} where it did not tell."""
    found = facts.get("versions")
    return {str(name): str(version) for name, version in found.items()} if isinstance(found, Mapping) else {}


def _asked(engine: str, facts: Mapping[str, object], capability: int | None) -> str:
    """`0.33.0 in ~/serving/bin/python, torch 2.13.0`."""
    found = versions_of(facts)
    package = next((each.package for each in ENGINES.values() if each.name == engine), "")
    own, rest = found.pop(package, "version unknown"), [f", {name} {version}" for name, version in found.items()]
    unknown = "" if capability is not None else "; no GPU is known here: the least capability of each is told"
    return f"{shown(own)} in {shown(facts.get('python', ''))}{shown(''.join(rest))}{unknown}"


def _taken(name: str, least: Mapping[str, int], capability: int | None) -> Iterator[Check]:
    """What is taken at this capability, then what wants a higher one; where none is known, all by their least."""
    for wanted in sorted(set(least.values())) if capability is None else ():
        for names in _lines(each for each in least if least[each] == wanted):
            yield Check(name, "not checked", f"from sm_{wanted}: {names}")
    if capability is None:
        return
    for names in _lines(each for each in least if least[each] <= capability):
        yield Check(name, "passed", f"at sm_{capability}: {names}")
    for names in _lines(f"{each} (sm_{least[each]})" for each in least if least[each] > capability):
        yield Check(name, "warning", f"wants a newer GPU for {names}")


def _kernels(name: str, found: list[str]) -> Iterator[Check]:
    for names in _lines(found, is_sorted=True):
        yield Check(name, "passed", names)
    if not found:
        yield Check(name, "warning", "no kernel at this capability")


def _lines(names: Iterable[str], *, is_sorted: bool = False) -> list[str]:
    """Names with commas between, in lines that a terminal has room for."""
    lines: list[str] = []
    for name in names if is_sorted else sorted(names):
        if lines and len(lines[-1]) + len(name) < _WIDE:
            lines[-1] += f", {name}"
        else:
            lines.append(name)
    return lines


def _numbers(found: object) -> dict[str, int]:
    if not isinstance(found, Mapping):
        return {}
    return {str(name): least for name, least in found.items() if isinstance(least, int)}
