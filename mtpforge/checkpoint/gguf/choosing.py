"""Which files of a folder or repository are one model: a file, or the parts X-00001-of-00003.gguf of one.

A repository for llama.cpp holds a model in many quantizations, each at the top or in a folder of its own; which of them
is meant, somebody has to say. Source of the names: llama.cpp tools/gguf-split, `%s-%05d-of-%05d.gguf`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from mtpforge.checkpoint import metadata
from mtpforge.errors import MtpforgeError, shown

SUFFIX: Final = ".gguf"
_PART: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_NO_MODELS: Final = ("mmproj", "imatrix")  # how files begin that hold what sees, or what a quantizer measured
_SHOWN: Final = 30
_OTHERWISE: Final = "name the file that holds the text model, or a hub id such as `zai-org/GLM-5.2-FP8`"


def models(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What stands before the number of a part, or before .gguf -> the files, in order."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith(SUFFIX) and not name.rpartition("/")[2].lower().startswith(_NO_MODELS):
            part = _PART.fullmatch(name)
            found.setdefault(part[1] if part else name.removesuffix(SUFFIX), []).append(name)
    return {stem: tuple(files) for stem, files in found.items()}


def is_all(names: Collection[str]) -> bool:
    """Whether weights are there in GGUF and in nothing that is read before it."""
    is_other = any(name.endswith(metadata.SUFFIX) or name == metadata.INDEX for name in names)
    return not is_other and bool(models(names))


def chosen(
    names: Iterable[str], wanted: str, label: str, how: Callable[[str, str], str], otherwise: str = ""
) -> tuple[str, ...]:
    """The files of the one model that is meant, all parts of it.

    wanted: a file, what stands before its number, its folder, or how that ends (`Q4_K_M`); "" where there is only one.
    how(name, first file): how another choice is typed. otherwise: what to type where there is nothing to choose.
    None, several, or a part that is missing: errors.
    """
    held = tuple(names)
    found = models(held)
    fitting = _fitting(found, wanted)
    is_other = wanted.endswith(SUFFIX) and wanted in held
    other = f"`{shown(label)}` holds no language model"
    if not found:
        what, why = f"`{shown(label)}` holds no model in GGUF", "what is behind `:` chooses one of several"
        if is_other:
            what, why, otherwise = other, "by its name it is for images, or what a quantizer measured", _OTHERWISE
        raise MtpforgeError(what, where=shown(label), why=why, fix=otherwise)
    if len(fitting) != 1:
        listed = ", ".join(f"`{shown(stem)}`" for stem in list(found)[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        what = f"`{shown(label)}` holds {len(found)} models in GGUF"
        if wanted and not fitting:
            what = other if is_other else f"`{shown(label)}`: no GGUF is called so"
        some, files = next(iter((fitting or found).items()))
        fix = f"say which: {how(some, files[0])}"
        raise MtpforgeError(what, where=shown(label), why=f"there are {listed}{more}", fix=fix)
    ((stem, files),) = fitting.items()
    _refuse_missing(stem, files, label)
    return files


def _fitting(found: dict[str, tuple[str, ...]], wanted: str) -> dict[str, tuple[str, ...]]:
    """Those that are meant: by file, by name, by folder, by how the name ends; the first way that any fits."""
    place, end = wanted.strip("/"), re.compile(rf"(?:.*[^a-z0-9])?{re.escape(wanted.lower())}")
    ways = (
        lambda _stem, files: not wanted or wanted in files,
        lambda stem, _files: stem == place,
        lambda stem, _files: stem.rpartition("/")[0] == place,
        lambda stem, _files: end.fullmatch(stem.lower()) is not None,
    )
    for way in ways:
        if fitting := {stem: files for stem, files in found.items() if way(stem, files)}:
            return fitting
    return {}


def _refuse_missing(stem: str, files: Sequence[str], label: str) -> None:
    """MtpforgeError unless these are all parts, of as many as each of them says."""
    parts = [found for file in files if (found := _PART.fullmatch(file))]
    if not parts:
        return
    totals = {int(part[3]) for part in parts}
    there = [int(part[2]) for part in parts]
    if len(totals) > 1 or len(parts) < len(files) or max(totals) < len(there):
        raise MtpforgeError(
            f"the parts of `{shown(stem)}` contradict each other",
            where=shown(label),
            why=", ".join(f"`{shown(file)}`" for file in files[:4]),
            fix="remove those that are superseded",
        )
    missing = [n for n in range(1, totals.pop() + 1) if n not in there]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise MtpforgeError(
            f"part {missing[0]}{more} of `{shown(stem)}` is missing",
            where=shown(label),
            why=f"{len(there)} of {len(there) + len(missing)} are here",
            fix="download all of them; where the MTP layer lies, only their headers tell",
        )
