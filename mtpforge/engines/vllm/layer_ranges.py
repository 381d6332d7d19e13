"""Many names of the same modules in many layers, said in few expressions, of `re:` lists or of shell wildcards.

`model.layers.0.self_attn.o_proj` to `model.layers.77.self_attn.o_proj` are, as one expression,
`re:model[.]layers[.](?:[0-9]|[1-6][0-9]|7[0-7])[.](?:self_attn[.]o_proj)$`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_OF_LAYER: Final = re.compile(r"([\w.]*?layers\.)(\d{1,4})\.([\w.*-]+)", re.ASCII)
_FEW: Final = 3  # names of a module that stay as they are


def as_expressions(entries: Iterable[str]) -> list[str]:
    """The entries of a list that knows `re:`, names of the same modules in many layers as one expression."""
    others, sets = _by_layers(entries)
    return others + [
        f"re:{_escaped(before)}(?:{'|'.join(numbers(layers))})[.](?:{'|'.join(map(_escaped, modules))})$"
        for (before, layers), modules in sets.items()
    ]


def as_wildcards(entries: Iterable[str]) -> list[str]:
    """The entries of a list that knows `*` and `[0-9]`, those of many layers as one for each run of numbers."""
    others, sets = _by_layers(entries)
    return others + [
        f"{before}{layer}.{module}"
        for (before, layers), modules in sets.items()
        for module in modules
        for layer in numbers(layers)
    ]


def numbers(wanted: Iterable[int]) -> list[str]:
    """Alternatives that match these whole numbers and no others: 0 to 77 are `[0-9]`, `[1-6][0-9]`, `7[0-7]`."""
    units: dict[int, list[int]] = {}
    for number in sorted(set(wanted)):
        units.setdefault(number // 10, []).append(number % 10)
    alike: dict[tuple[bool, str], list[int]] = {}
    for tens, last in units.items():
        alike.setdefault((tens > 0, _digit(last)), []).append(tens)
    return [front + last for (has_tens, last), tens in alike.items() for front in (_fronts(tens) if has_tens else [""])]


def _by_layers(entries: Iterable[str]) -> tuple[list[str], dict[tuple[str, tuple[int, ...]], list[str]]]:
    """What names no layer or few, and (start of the name, layers) -> the modules that are named in all of these."""
    others: list[str] = []
    layers: dict[tuple[str, str], list[int]] = {}
    for entry in dict.fromkeys(entries):
        found = _OF_LAYER.fullmatch(entry)  # no expression: `:` is none of its letters
        if found is None:
            others.append(entry)
        else:
            layers.setdefault((found[1], found[3]), []).append(int(found[2]))
    sets: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (before, module), held in layers.items():
        if len(held) < _FEW:
            others += [f"{before}{layer}.{module}" for layer in held]
        else:
            sets.setdefault((before, tuple(sorted(held))), []).append(module)
    return others, sets


def _escaped(name: str) -> str:
    return re.escape(name).replace("\\.", "[.]")


def _fronts(tens: list[int]) -> list[str]:
    """What stands before the last digit: tens of one digit together, longer ones each for itself."""
    single = [number for number in tens if number < 10]  # noqa: PLR2004
    return [*([_digit(single)] if single else []), *(str(number) for number in tens if number not in single)]


def _digit(wanted: list[int]) -> str:
    """An expression for one digit out of several, ascending."""
    if len(wanted) == 1:
        return str(wanted[0])
    if len(wanted) > 2 and wanted == list(range(wanted[0], wanted[-1] + 1)):  # noqa: PLR2004
        return f"[{wanted[0]}-{wanted[-1]}]"
    return f"[{''.join(map(str, wanted))}]"
