"""Which schemes an installed engine has kernels for at this machine's capability, by that engine's own tables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from mtpforge.drafting.devices import Gpu
from mtpforge.engines import ENGINES
from mtpforge.errors import MtpforgeError
from mtpforge.report import Check

_NO_GPU: Final = 90  # what an engine is asked by where there is none: only its least capabilities are told then
_NAMED: Final = {"methods": "quantization", "schemes": "compressed-tensors"}


def tables(found: tuple[Gpu, ...] | str, python: str | None) -> dict[str, Mapping[str, object]]:
    """By an engine's name what its tables say, asked in these interpreters, PATH:PATH; {} for None.

    MtpforgeError where an interpreter has no engine.
    """
    told: dict[str, Mapping[str, object]] = {}
    for path in [] if python is None else python.split(os.pathsep):
        answers, missing = {}, []
        for engine in ENGINES.values():
            try:
                answers[engine.name] = engine.tables(_capability(found) or _NO_GPU, path)
            except MtpforgeError as error:
                missing.append(error)
        if not answers:
            raise missing[0]
        told |= answers
    return told


def checks(found: tuple[Gpu, ...] | str, told: Mapping[str, Mapping[str, object]]) -> tuple[Check, ...]:
    """What each engine takes and what it wants a newer GPU for; without a GPU the least capabilities."""
    if not told:
        fix = "`mtpforge doctor --engine-python PATH` asks the engine of that interpreter"
        return (Check("kernels", "not checked", "no engine was asked what it runs at this GPU's capability", fix),)
    capability = _capability(found)
    rows: list[Check] = []
    for engine, facts in told.items():
        for key, label in _NAMED.items():
            rows.append(_taken(f"{engine}, {label}", _numbers(facts.get(key)), capability))
        kinds = facts.get("kernels")
        if capability is not None and isinstance(kinds, Mapping):
            for kind, names in kinds.items():
                rows.append(_kernels(f"{engine}, {kind}", [str(name) for name in names]))
    return tuple(rows)


def _capability(found: tuple[Gpu, ...] | str) -> int | None:
    """Of the oldest GPU, as 90; None where none is known."""
    if isinstance(found, str):
        return None
    return min(int(major) * 10 + int(minor or 0) for major, _, minor in (g.capability.partition(".") for g in found))


def _taken(name: str, least: Mapping[str, int], capability: int | None) -> Check:
    listed = sorted(least, key=lambda each: (least[each], each))
    if capability is None:
        told = ", ".join(f"{each} {least[each]}" for each in listed)
        return Check(name, "not checked", f"no GPU is known here; least capability: {told}")
    taken = [each for each in listed if least[each] <= capability]
    newer = [f"{each} (sm_{least[each]})" for each in listed if least[each] > capability]
    more = f"; wants a newer GPU for {', '.join(newer)}" if newer else ""
    return Check(name, "passed", f"at sm_{capability}: {', '.join(taken) or 'nothing'}{more}")


def _kernels(name: str, found: list[str]) -> Check:
    if found:
        return Check(name, "passed", ", ".join(found))
    return Check(name, "warning", "no kernel at this capability")


def _numbers(found: object) -> dict[str, int]:
    if not isinstance(found, Mapping):
        return {}
    return {str(name): least for name, least in found.items() if isinstance(least, int)}
