"""explain(): which format a weight's parts almost are, and what is wrong with them. Headers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from mtpforge.errors import MtpforgeError, shown
from mtpforge.formats.format import Format, Specs
from mtpforge.tensors import Quantization, Shape

_SHOWN: Final = 3
_OPTIONAL: Final = frozenset({"weight_g_idx", "g_idx"})
_SAYS_NOTHING: Final = "`quantization_config` in config.json does not say which"


def nearest_miss(
    formats: Mapping[str, Format],
    label: Callable[[Quantization], str],
    parts: Specs,
    shape: Shape,
    block: Mapping[str, object],
) -> str:
    """One sentence: the format and quantization with the fewest differences, and the first few of them."""
    best: list[str] | None = None
    alike: list[str] = []
    nearest: tuple[Format, Quantization] | None = None
    guesses = ((form, q) for form in formats.values() for q in form.guesses(parts, shape, block))
    for form, quantization in guesses:
        try:
            expected = form.layout(shape, quantization)
        except MtpforgeError:  # a group size or block that this shape does not allow
            continue
        differences = _differences(parts, expected)
        if not differences and form.name not in alike:
            alike.append(form.name)
        if best is None or len(differences) < len(best):
            best, nearest = differences, (form, quantization)
    if len(alike) > 1:
        return f"these are parts of {', '.join(alike[:-1])} and {alike[-1]} alike, and {_SAYS_NOTHING}"
    listed = ", ".join(f"{shown(suffix)} {spec}" for suffix, spec in sorted(parts.items()))
    if not best or nearest is None:
        return f"no format has these parts: {listed}"
    more = f", and {len(best) - _SHOWN} more" if len(best) > _SHOWN else ""
    return f"nearest is {nearest[0].name} ({label(nearest[1])}): {', '.join(best[:_SHOWN])}{more}"


def _differences(parts: Specs, expected: Specs) -> list[str]:
    found = [f"missing {suffix}" for suffix in expected if suffix not in parts]
    found += [
        f"unexpected {shown(suffix)}" for suffix in sorted(parts) if suffix not in expected and suffix not in _OPTIONAL
    ]
    for suffix, spec in expected.items():
        stored = parts.get(suffix, spec)
        if stored.dtype != spec.dtype:
            found.append(f"{suffix} is {stored.dtype} instead of {spec.dtype}")
        if stored.shape != spec.shape:
            found.append(f"{suffix} is {list(stored.shape)} instead of {list(spec.shape)}")
    return found
