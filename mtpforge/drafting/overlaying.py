"""An overlay: the target once more, as links, with the config.json that the engine has to be told of.

For engines that build a draft by the target's config, where the override is longer than people read. No file of the
target is copied or changed; ModelOpt's side file is left out, since the block stands whole in config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from mtpforge import errors
from mtpforge.checkpoint import metadata, open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.hub.snapshots import snapshot
from mtpforge.engines.engine import Engine
from mtpforge.errors import MtpforgeError
from mtpforge.writing import linked, preflight
from mtpforge.writing.folder import refuse_existing

_OWN: Final = frozenset((metadata.CONFIG, metadata.SIDE_FILE, linked.MARK))


def refuse(told: Checkpoint, out: Path, *, force: bool) -> None:
    """MtpforgeError for an overlay that nothing needs, or that could not be written."""
    if not told.is_restated:
        raise MtpforgeError(
            "this draft needs no overlay: the engine has to be told nothing of the target's quantization",
            where="option `--overlay`",
            fix="leave `--overlay` out",
            code=errors.USAGE,
        )
    preflight.refuse_unwritable(out, "overlay", "--overlay")
    preflight.refuse_output({"target": told}, out, mark=linked.MARK)
    refuse_existing(out, force=force, mark=linked.MARK)
    _files(told)


def write(told: Checkpoint, engine: Engine, out: Path, *, force: bool = False) -> Checkpoint:
    """The overlay of a restated target, made and opened: what the engine is given in the target's place."""
    refuse(told, out, force=force)
    config = json.dumps(engine.told_config(told), indent=2) + "\n"
    about = {"target": told.identity, "engine": engine.name}
    linked.write(out, _files(told), {metadata.CONFIG: config.encode()}, about, force=force)
    return open_checkpoint(str(out.absolute()))


def _files(told: Checkpoint) -> dict[str, Path]:
    """Name -> the file or folder itself, behind all links. MtpforgeError where the target is not on this machine."""
    home = snapshot(told) if told.revision else Path(told.location)
    return {entry.name: entry.resolve() for entry in sorted(home.iterdir()) if entry.name not in _OWN}


def is_of(folder: Path, told: Checkpoint, engine: Engine) -> bool:
    """Whether a folder is the overlay of this target for this draft already."""
    try:
        found = json.loads((folder / metadata.CONFIG).read_bytes())
        about = json.loads((folder / linked.MARK).read_bytes())
    except (OSError, ValueError):
        return False
    same = json.loads(json.dumps(engine.told_config(told)))
    return bool(about.get("target") == told.identity and found == same)


def at(told: Checkpoint, engine: Engine, out: Path) -> Checkpoint:
    """The overlay in a folder: as it lies there, where it is this one, else made."""
    if is_of(out, told, engine):
        return open_checkpoint(str(out.absolute()))
    return write(told, engine, out)
