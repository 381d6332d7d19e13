"""What to do about a graft or a merge that is not as expected: the command that makes it again, with its arguments.

Both say of what they were made by identity: `org/name@commit`, or a folder's name and the hash of what it held.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.folder import open_folder
from mtpforge.engines import named
from mtpforge.errors import MtpforgeError, shown

_ABSENT: Final = "FOLDER/"
_HASH: Final = "#"  # in the identity of a folder


def advice(checkpoint: Checkpoint) -> str:
    """`mtpforge graft` or `mtpforge merge` over what they made; "" for what neither made."""
    for file, verb, words in ((metadata.GRAFT, "graft the layer", _graft), (metadata.MERGE, "merge", _merge)):
        body = record(checkpoint, file)
        if body is not None:
            typed = ["mtpforge", *words(body, checkpoint), "--force", "-o", _out(checkpoint)]
            return f"{verb} again: `{shlex.join(typed)}`{where_absent(typed)}"
    return ""


def where_absent(typed: list[str]) -> str:
    """What to put in for the folders of which nobody knows where they lie."""
    absent = dict.fromkeys(f"`{word.rpartition(_ABSENT)[2]}`" for word in typed if _ABSENT in word)
    held = "holds" if len(absent) == 1 else "hold"
    return f", where `{_ABSENT[:-1]}` is the folder that {held} {' and '.join(absent)}" if absent else ""


def record(checkpoint: Checkpoint, file: str) -> Mapping[str, object] | None:
    """What a graft or merge says of itself; None where there is none, {} for a file that cannot be read."""
    raw = checkpoint.small_file(file)
    if raw is None:
        return None
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def identity_of(body: Mapping[str, object], side: str) -> str:
    """The identity of one side of a record, "" where it names none."""
    held = body.get(side)
    found = held.get("id") if isinstance(held, Mapping) else None
    return found if isinstance(found, str) else ""


def takes_of(body: Mapping[str, object]) -> list[tuple[str, str]]:
    """The patterns of a merge, each with the identity of who gave its modules."""
    rows = body.get("takes")
    found = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    return [(str(row.get("pattern", "")), str(row.get("id", ""))) for row in found]


def found_at(identity: str, beside: Checkpoint, known: Checkpoint | None = None) -> str:
    """Where a side lies: a hub id, a folder that is found here, beside it, or behind its links; "" where none is.

    known: another checkpoint that is at hand, and may be it, or lie beside it.
    """
    name, mark, _ = identity.rpartition(_HASH)
    if not mark:
        return identity
    more = () if known is None else (Path(known.location), Path(known.location).parent / name)
    for place in dict.fromkeys((*_places(name, Path(beside.location)), *more)):
        with suppress(MtpforgeError, OSError):
            if open_folder(place).identity == identity:
                return str(place)
    return ""


def _places(name: str, home: Path) -> Iterator[Path]:
    yield Path(name)
    yield home.parent / name
    with suppress(OSError):
        for entry in sorted(home.iterdir()):
            if entry.is_symlink():
                yield Path(os.path.abspath(entry.readlink())).parent  # noqa: PTH100  # no further than the link says


def as_typed(identity: str, beside: Checkpoint, unknown: str, known: str = "") -> str:
    """A side as it could be typed. known: where another side lies, beside which it may be found."""
    other = None
    with suppress(MtpforgeError, OSError):
        other = open_folder(Path(known)) if known else None
    name = shown(identity.rpartition(_HASH)[0])
    return found_at(identity, beside, other) or (f"{_ABSENT}{name}" if identity else unknown)


def _graft(body: Mapping[str, object], made: Checkpoint) -> list[str]:
    target = as_typed(identity_of(body, "target"), made, "CKPT")
    layer = as_typed(identity_of(body, "layer"), made, "DRAFT", target)
    return ["graft", layer, "--into", target, *named(str(body.get("engine", "")))]


def _merge(body: Mapping[str, object], made: Checkpoint) -> list[str]:
    takes = (("--take", f"{pattern}={as_typed(of, made, 'CKPT')}") for pattern, of in takes_of(body))
    return [
        "merge",
        "--base",
        as_typed(identity_of(body, "base"), made, "CKPT"),
        *(word for take in takes for word in take),
    ]


def _out(checkpoint: Checkpoint) -> str:
    return "DIR" if checkpoint.revision else checkpoint.label
