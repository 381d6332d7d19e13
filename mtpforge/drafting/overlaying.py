"""An overlay: the target once more, as links, with the config.json that the engine has to be told of.

For engines that build a draft by the target's config, where the override is longer than people read. No file of the
target is copied or changed; ModelOpt's side file is left out, since the block stands whole in config.json.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Final

from mtpforge import errors, versions
from mtpforge.checkpoint import metadata, open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.checkpoint.hub.snapshots import snapshot
from mtpforge.drafting.remarks import Remark
from mtpforge.drafting.request import OnRemark
from mtpforge.engines.engine import Engine
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.writing import linked, preflight
from mtpforge.writing.claim import on_disk
from mtpforge.writing.folder import refuse_existing

WROTE: Final = "was written: links to the target, beside another config.json"
_BLOCK: Final = "quantization_config"
_OWN: Final = frozenset((metadata.CONFIG, metadata.SIDE_FILE, linked.MARK))


def refuse(told: Checkpoint, engine: Engine, out: Path, *, force: bool) -> None:
    """MtpforgeError for an overlay that nothing needs, or that could not be written."""
    _refuse_needless(told, engine)
    preflight.refuse_unwritable(out, "overlay", "--overlay")
    preflight.refuse_output({"target": told}, out, mark=linked.MARK)
    refuse_existing(out, force=force, mark=linked.MARK)
    _files(told)


def _refuse_needless(told: Checkpoint, engine: Engine) -> None:
    if told.is_restated or engine.told_config(told).get(_BLOCK) != told.config.get(_BLOCK):
        return
    raise MtpforgeError(
        "this draft needs no overlay: the engine has to be told nothing of the target's quantization",
        where="option `--overlay`",
        fix="leave `--overlay` out",
        code=errors.USAGE,
    )


def write(told: Checkpoint, engine: Engine, out: Path, *, force: bool = False) -> Checkpoint:
    """The overlay of a target that the engine has to be told of, made and opened: what it is given in its place."""
    refuse(told, engine, out, force=force)
    stated = [asdict(each) for each in versions.stated(told, family_of(told.config))]
    about = {"target": told.identity, "engine": engine.name, "stated": stated}
    linked.write(out, _files(told), {metadata.CONFIG: _config(told, engine)}, about, force=force)
    return open_checkpoint(str(out.absolute()))


def _config(told: Checkpoint, engine: Engine) -> bytes:
    return (json.dumps(engine.told_config(told), indent=2) + "\n").encode()


def _files(told: Checkpoint) -> dict[str, Path]:
    """Name -> the file or folder itself, behind all links. MtpforgeError where the target is not on this machine."""
    home = snapshot(told) if told.revision else Path(told.location)
    return {entry.name: entry.resolve() for entry in sorted(home.iterdir()) if entry.name not in _OWN}


def at(told: Checkpoint, engine: Engine, out: Path, on_remark: OnRemark | None = None) -> Checkpoint:
    """The overlay in a folder: as it lies there, where it is this one, else made. on_remark: told what was done.

    Of one that an older version made, config.json lacks what the engine has to be told since: it is written anew.
    """
    _refuse_needless(told, engine)
    if not _is_of(out, told, engine):
        preflight.refuse_output({"target": told}, out, mark=linked.MARK)
        _refuse_another(out)
        made, done = write(told, engine, out), WROTE
    else:
        made, done = open_checkpoint(str(out.absolute())), "is there already, and says what this draft needs"
        if json.loads((out / metadata.CONFIG).read_bytes()) != json.loads(_config(told, engine)):
            linked.renew(out, metadata.CONFIG, _config(told, engine))
            made, done = open_checkpoint(str(out.absolute())), "had a config.json of an older version, written anew"
    if on_remark is not None:
        on_remark(Remark("overlay", f"{shown(out)} {done}", aside=True))
    return made


def _is_of(folder: Path, told: Checkpoint, engine: Engine) -> bool:
    """Whether a folder is an overlay of this target for this draft: the engine is to be told the same of either."""
    try:
        about = json.loads((folder / linked.MARK).read_bytes())
        return bool(
            about.get("target") == told.identity
            and json.loads(_config(open_checkpoint(str(folder.absolute())), engine))
            == json.loads(_config(told, engine))
        )
    except (OSError, ValueError, MtpforgeError):
        return False


def _refuse_another(out: Path) -> None:
    """MtpforgeError for the overlay of another draft, or an empty folder: `serve`, which asks, has no `--force`."""
    with on_disk(out, "overlay", "--overlay"):
        is_overlay = (out / linked.MARK).is_file()
        is_empty = out.is_dir() and not any(out.iterdir())
    if is_overlay or is_empty:
        raise MtpforgeError(
            "the output exists already",
            where=shown(out),
            why="it is an empty folder" if is_empty else "it is the overlay of another draft, target or engine",
            fix=f"choose another folder with `--overlay`, or remove this one: `rm -r {shlex.quote(str(out))}`",
            code=errors.MACHINE,
        )
