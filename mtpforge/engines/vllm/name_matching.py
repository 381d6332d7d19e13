"""How vLLM looks a module up in the lists of a quantization config: first the fused name, then part by part.

Source: vllm model_executor/layers/quantization: utils/{config_utils,quant_utils}.py, modelopt.py, quark/utils.py
(0.33.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

from mtpforge.engines.vllm.matrices import Asked
from mtpforge.errors import MtpforgeError, Where

Matches: TypeAlias = Callable[[str, str], bool]


def exact(name: str, entry: str) -> bool:
    """Whether an entry is the name."""
    return entry == name


def listed(asked: Asked, entries: Sequence[str], matches: Matches, key: str) -> str | None:
    """The entry that lists a matrix: by its fused name, else by every part of it. Some parts but not all: an error."""
    if direct := _first(asked.name, entries, matches):
        return direct
    if not asked.is_fused:
        return None
    by_part = [_first(part, entries, matches) for part in asked.parts]
    if any(by_part) and not all(by_part):
        raise _half_listed(asked, by_part, key)
    return by_part[0]


def skipped(asked: Asked, entries: Sequence[str], key: str) -> str | None:
    """The entry by which method fp8 leaves a matrix dense.

    A single matrix with "experts" anywhere in its name (the routed experts, but also `shared_experts.down_proj`) is
    listed by any entry that contains its name; every other one by an entry that is its name.
    """
    if not asked.is_fused and "experts" in asked.name:
        return next((entry for entry in entries if asked.name in entry), None)
    return listed(asked, entries, exact, key)


def excluded(asked: Asked, entries: Sequence[str], key: str) -> str | None:
    """The entry by which ModelOpt's configs leave a matrix dense: as fp8, else by substring, else by wildcard."""
    inside = (entry for entry in entries if entry in asked.name)  # so is the empty entry, in every name
    wildcard = (entry for entry in entries if fnmatchcase(asked.name, entry))
    return skipped(asked, entries, key) or next(inside, next(wildcard, None))


def containing(asked: Asked, entries: Sequence[str], key: str) -> str | None:
    """The entry by which AWQ leaves a matrix dense: any that its name contains, else one for each of its parts."""
    direct = next((entry for entry in entries if entry in asked.name), None)
    if direct is not None or not asked.is_fused:
        return direct
    by_part = [next((entry for entry in entries if entry in part), None) for part in asked.parts]
    if None in by_part and any(entry is not None for entry in by_part):
        raise _half_listed(asked, by_part, key, "`Detected some but not all shards of a layer are quantized`")
    return by_part[0]


def below(asked: Asked, entries: Iterable[str]) -> str | None:
    """The entry, no expression, that is the name of a matrix or of anything below it (Quark, experts)."""
    return next((e for e in entries if e == asked.name or e.startswith(f"{asked.name}.")), None)


def _first(name: str, entries: Iterable[str], matches: Matches) -> str | None:
    # Lists hold a thousand plain names, and a restated target asks a thousand times: no call for each of those.
    return next((e for e in entries if e == name or (e[:3] == "re:" and matches(name, e))), None)


_DIFFERENT: Final = "`Found different quantization schemes for the shards`"


def _half_listed(asked: Asked, by_part: Sequence[str | None], key: str, words: str = _DIFFERENT) -> MtpforgeError:
    fused = asked.name.rpartition(".")[2]
    names = [part.rpartition(".")[2] for part in asked.parts]
    inside = [name for name, entry in zip(names, by_part, strict=True) if entry]
    outside = [name for name, entry in zip(names, by_part, strict=True) if not entry]
    return MtpforgeError(
        f"the target leaves only {' and '.join(inside)} of `{fused}` unquantized",
        where=Where("config.json", inside=f"quantization_config.{key}"),
        why=f"vLLM runs {' and '.join(names)} as one matrix and refuses to start: {words}",
        fix=f"list {' and '.join(outside)} as well in the target's config.json, or none of them",
    )
