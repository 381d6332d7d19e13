"""Checks of names, dtypes and shapes: headers only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint, Stray
from mtpforge.errors import shown
from mtpforge.families.counting import expert_numbers
from mtpforge.report import Check
from mtpforge.tensors import Spec
from mtpforge.verifying.expectations import Subject

_SHOWN: Final = 3


def some(names: Iterable[object]) -> str:
    """The first three of a list, and how many more there are."""
    listed = [shown(name) for name in names]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def files(draft: Checkpoint, prefix: str) -> Check:
    """Whether the index and the files tell the same story: every engine then reads the same tensors."""
    strays = draft.strays("")
    twice = [s for s in strays if len(s.files) > 1]
    outside = [s for s in strays if not s.indexed and len(s.files) == 1]
    foreign = sorted(name for name in draft.names if not name.startswith(prefix))
    copies = some(f"{stray.name} ({' and '.join(stray.files)})" for stray in twice)
    wrong = [f"{len(twice)} tensors lie in several files: {copies}" if twice else ""]
    wrong += [f"{len(outside)} tensors lie outside the index: {some(s.name for s in outside)}" if outside else ""]
    wrong += [f"{len(foreign)} tensors are not of the layer {prefix}*: {some(foreign)}" if foreign else ""]
    if any(wrong):
        fix = "keep one copy of each tensor, all of them in the index, and nothing of other layers"
        if others := _others(draft, prefix, strays):
            home = Path(draft.location if os.path.isdir(draft.location) else "")  # noqa: PTH112 -- or a hub repository
            listed = some(f"`{shown(home / file)}`" for file in others)
            fix = (
                f"move {listed} elsewhere, or delete {'them' if others[1:] else 'it'}: nothing of the layer is in there"
            )
        return Check("files", "failed", "; ".join(w for w in wrong if w), fix)
    return Check("files", "passed", f"{len(draft.names)} tensors, each in one place")


def _others(draft: Checkpoint, prefix: str, strays: Iterable[Stray]) -> list[str]:
    """Files that hold tensors and none of the layer, and that no index names: nothing would be missed without them."""
    held = [(ref.file, name) for name, ref in draft.locate(sorted(draft.names)).items()]
    held += [(file, stray.name) for stray in strays for file in stray.files]
    ours = {file for file, name in held if name.startswith(prefix)}
    raw = draft.small_file(metadata.INDEX)
    return sorted({file for file, _ in held} - ours - set(metadata.index(raw).values() if raw else ()))


def names(subject: Subject) -> Check:
    """Every tensor that the engine expects, and no other."""
    held = {name for name in subject.refs if name.startswith(subject.prefix)}
    missing = sorted(subject.expected.keys() - held)
    extra = sorted(held - subject.expected.keys())
    replaced = [name for name in extra if _replaced(subject, name)]
    extra = [name for name in extra if name not in set(replaced)]
    wrong = [f"{len(missing)} missing: {some(missing)}"] if missing else []
    wrong += [f"{len(extra)} too many: {some(extra)}"] if extra else []
    if wrong:
        return Check("names", "failed", "; ".join(wrong), subject.anew)
    if replaced:
        return Check("names", "warning", f"the engine puts the target's own in their place: {some(replaced)}")
    return Check("names", "passed", f"all {len(subject.expected)} expected by {subject.engine.name}, no other")


def _replaced(subject: Subject, name: str) -> bool:
    local = name.removeprefix(subject.prefix)
    return any(fnmatchcase(local, rule.pattern) for rule in subject.family.dropped)


def dtypes(subject: Subject) -> Check:
    """Every tensor in the dtype that the engine builds its parameter with; engines convert without a word."""
    return _compare(subject, "dtypes", [(n, s.dtype, e.dtype) for n, s, e in _pairs(subject)])


def shapes(subject: Subject) -> Check:
    """Every tensor in the shape that the engine expects; a smaller one of an expert is copied into a corner."""
    return _compare(subject, "shapes", [(n, list(s.shape), list(e.shape)) for n, s, e in _pairs(subject)])


def _pairs(subject: Subject) -> Iterator[tuple[str, Spec, Spec]]:
    for name, spec in subject.expected.items():
        if name in subject.refs:
            yield name, subject.refs[name].spec, spec


def _compare(subject: Subject, check: str, rows: list[tuple[str, object, object]]) -> Check:
    wrong = [f"{name} is {held}, expected {wanted}" for name, held, wanted in rows if held != wanted]
    if wrong:
        return Check(check, "failed", f"{len(wrong)} differ: {some(wrong)}", subject.anew)
    if not rows:
        return Check(check, "not checked", f"no tensor has a name expected by {subject.engine.name}")
    return Check(check, "passed", f"{len(rows)} tensors as built by {subject.engine.name}")


def experts(subject: Subject) -> Check:
    """Every expert, and of each every scale and zero point, once; not more experts than the target has."""
    prefix = subject.prefix
    local = [name.removeprefix(prefix) for name in subject.refs if name.startswith(prefix)]
    numbers = expert_numbers(subject.family, local)
    n_target = subject.n_target
    absent = [n for n in range(subject.n_experts) if n not in numbers]
    surplus = sorted(n for n in numbers if n >= subject.n_experts)
    incomplete = _incomplete(subject)
    wrong = [f"experts {some(absent)} are missing" if absent else ""]
    wrong += [f"experts {some(surplus)} have no row in the router" if surplus else ""]
    wrong += [f"incomplete: {some(incomplete)}" if incomplete and not absent else ""]
    wrong += [f"{subject.n_experts} experts, the target has {n_target}" if subject.n_experts > n_target else ""]
    if any(wrong):
        return Check("experts", "failed", "; ".join(w for w in wrong if w), subject.anew)
    weights = [w for w in subject.weights if w.module.expert is not None]
    counted = sum(len(w.specs) for w in weights)
    fewer = f" of the target's {n_target}" if subject.n_experts < n_target else ""
    detail = f"{subject.n_experts}{fewer} experts, {len(weights)} projections, {counted} tensors, each once"
    return Check("experts", "passed", detail)


def _incomplete(subject: Subject) -> list[str]:
    found = []
    for weight in subject.weights:
        if weight.module.expert is not None:
            own = f"{subject.prefix}{weight.module.name}."
            lacking = sorted(suffix for suffix in weight.specs if own + suffix not in subject.refs)
            if lacking:
                found.append(f"{weight.module.name} lacks {' and '.join(lacking)}")
    return found
