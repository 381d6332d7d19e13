"""Which schemes an installed engine has kernels for at this machine's capability, by that engine's own tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

from mtpforge.drafting.devices import Gpu
from mtpforge.engines import ENGINES
from mtpforge.engines.child import is_absent
from mtpforge.errors import MtpforgeError, shown
from mtpforge.report import Check

_NO_GPU: Final = 90  # what an engine is asked by where there is none: only its least capabilities are told then
_NAMED: Final = {"methods": "quantization", "schemes": "compressed-tensors"}


def tables(
    found: tuple[Gpu, ...] | str, python: str | None
) -> tuple[dict[str, Mapping[str, object]], dict[str, MtpforgeError]]:
    """By an engine's name what its tables say, asked in these interpreters, PATH:PATH, and why those of others do not.

    An engine that an interpreter lacks is in neither; nothing for None. MtpforgeError where no engine of one answers.
    """
    told: dict[str, Mapping[str, object]] = {}
    broken: dict[str, MtpforgeError] = {}
    for path in [] if python is None else python.split(os.pathsep):
        answers: dict[str, Mapping[str, object]] = {}
        failed: dict[str, MtpforgeError] = {}
        for engine in ENGINES.values():
            try:
                answers[engine.name] = engine.tables(_capability(found) or _NO_GPU, path)
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
    """What each engine takes and what it wants a newer GPU for; without a GPU the least capabilities."""
    if not told:
        fix = "`mtpforge doctor --engine-python PATH` asks the engine of that interpreter"
        return (Check("kernels", "not checked", "no engine was asked what it runs at this GPU's capability", fix),)
    capability = _capability(found)
    rows: list[Check] = []
    for engine, facts in told.items():
        for key, label in _NAMED.items():
            rows.append(_taken(f"{engine}, {label}", _numbers(facts.get(key)), capability))
        rows += _missing(engine, facts.get("missing"))
        kinds = facts.get("kernels")
        if capability is not None and isinstance(kinds, Mapping):
            for kind, names in kinds.items():
                rows.append(_kernels(f"{engine}, {kind}", [str(name) for name in names]))
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
