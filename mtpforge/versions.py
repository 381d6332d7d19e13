"""stated(): which version of a family's models a checkpoint says that it is of, and by what.

The versions of a family share one shape, and a head trained for another one drafts badly without a word. Only what a
checkpoint says of itself tells them apart: nothing is guessed, and what contradicts is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import Family
from mtpforge.families.versions import versions_in
from mtpforge.hub_names import model_name

# Fields of a config that may name the model: what transformers loaded it from; of GGUF its name, and that of its file.
_NAMING: Final = {
    "_name_or_path": "`_name_or_path` of {whose} config.json",
    "name_or_path": "`name_or_path` of {whose} config.json",
    "general.name": "`general.name` of {whose} header",
    "general.file": "the name of {whose} file",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing that states a version. by: what it is, in words; said: what it says, "" where that is the version."""

    version: str
    by: str
    said: str = ""


def stated(checkpoint: Checkpoint, family: Family, whose: str = "its") -> tuple[Statement, ...]:
    """Every statement of a checkpoint, of no other one. A draft is of its source's version, whatever it is called.

    Grafts and overlays have records of the target that they were made of: their own names may say nothing.
    """
    if (raw := checkpoint.small_file(metadata.MANIFEST)) is not None:
        return _recorded(raw, family, f"{whose} {metadata.MANIFEST}")
    recorded: list[Statement] = []
    for file, read in ((metadata.GRAFT, _grafted), (metadata.OVERLAY, _overlaid)):
        if (raw := checkpoint.small_file(file)) is not None:
            recorded += read(raw, family, f"{whose} {file}")
    own = checkpoint.location if checkpoint.revision else model_name(checkpoint.location)
    config, text = checkpoint.config, family.text(checkpoint.config)
    names = [(f"{whose} name", own)]
    names += [(f"`base_model` of {whose} card", name) for name in checkpoint.base_models()]
    for key, words in _NAMING.items():
        found = text.get(key) or config.get(key)
        names += [(words.format(whose=whose), found)] if isinstance(found, str) else []
    own_names = (Statement(v, by, shown(name)) for by, name in names for v in versions_in(name, family))
    return (*recorded, *own_names)


def _grafted(raw: bytes, family: Family, by: str) -> tuple[Statement, ...]:
    """What a graft's record says of target and layer; () where it says nothing."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return ()
    sides = [body.get(side) for side in ("target", "layer")] if isinstance(body, dict) else []
    found = [s for side in sides if isinstance(side, dict) for s in _of_source({"source": side}, family, by)]
    return tuple(dict.fromkeys(found))


def _overlaid(raw: bytes, family: Family, by: str) -> tuple[Statement, ...]:
    """What an overlay's record says of its target; () where it says nothing."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return ()
    is_record = isinstance(body, dict)
    return (
        _of_source({"source": {"id": body.get("target"), "stated": body.get("stated")}}, family, by)
        if is_record
        else ()
    )


def _recorded(raw: bytes, family: Family, by: str) -> tuple[Statement, ...]:
    """What a draft's manifest says of its source; nothing where it is damaged, which is for `verify` to tell."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return ()
    return _of_source(body, family, by)


def _of_source(body: object, family: Family, by: str) -> tuple[Statement, ...]:
    """What a record says of the side called `source`."""
    match body:
        case {"source": {"stated": list(rows)}}:
            versions = dict.fromkeys(row.get("version") for row in rows if isinstance(row, dict))
            return tuple(Statement(shown(version), by) for version in versions if isinstance(version, str))
        case {"source": {"id": str(name)}}:  # of before versions were recorded: `org/name@commit`, `folder#hash`
            return tuple(Statement(version, by, shown(name)) for version in versions_in(name, family))
    return ()


def versions(statements: Iterable[Statement]) -> frozenset[str]:
    """The versions that are stated."""
    return frozenset(statement.version for statement in statements)


def contradict(ours: Iterable[Statement], theirs: Iterable[Statement]) -> bool:
    """Whether both sides state a version and none is stated by both."""
    one, other = versions(ours), versions(theirs)
    return bool(one and other) and not one & other


def told(family: Family, statements: Iterable[Statement]) -> str:
    """`GLM-5.2 by its name (GLM-5.2-AWQ)`; every version once, by the first thing that states it."""
    first: dict[str, Statement] = {}
    for statement in statements:
        first.setdefault(statement.version, statement)
    return " and ".join(
        f"{family.stem}-{s.version} by {s.by}" + (f" ({s.said})" if s.said else "") for s in first.values()
    )


def unsaid(family: Family) -> str:
    """Why nothing is taken for a target that states no version; only versions of one shape can be confused."""
    unknown = f"no name, card or config says which {family.stem} the target is"
    if len(family.base_models) > 1:
        return f"{unknown}: heads of several fit its shape, and that of another version drafts badly"
    return f"{unknown}: one base model of its shape is known, and a head of any other drafts badly"


def bases(family: Family, statements: Iterable[Statement]) -> tuple[str, ...]:
    """The published base models of the one version that is stated; () where none is, or more than one."""
    of = versions(statements)
    return family.base_models.get(next(iter(of)), ()) if len(of) == 1 else ()


def example(family: Family, statements: Iterable[Statement]) -> str:
    """For hints: the base model of the stated version, else those of every one."""
    if found := bases(family, statements):
        return f"e.g. `--source {found[0]}`"
    listed = (f"`--source {names[0]}` for {family.stem}-{version}" for version, names in family.base_models.items())
    return f"e.g. {', '.join(listed)}"


def example_for(checkpoint: Checkpoint, family: Family) -> str:
    """The same for a checkpoint; all of them where its card cannot be had: a hint raises nothing."""
    try:
        return example(family, stated(checkpoint, family))
    except MtpforgeError:
        return example(family, ())
