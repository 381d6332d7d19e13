"""The folder of the hub's own cache in which a repository lies whole, for engines that are given a folder."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from mtpforge import errors
from mtpforge.checkpoint import metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError, shown


def snapshot(checkpoint: Checkpoint, *, otherwise: str = "leave `--overlay` out") -> Path:
    """The snapshot of a repository at its commit, with every weight file of its index; asks no server.

    MtpforgeError, code 5, where it is not on this machine, or not all of it. otherwise: what else could be typed.
    """
    try:
        home = Path(snapshot_download(checkpoint.location, revision=checkpoint.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise _absent(checkpoint, "nothing of it lies in the hub's cache", otherwise) from None
    index = checkpoint.small_file(metadata.INDEX)
    wanted = set(metadata.index(index).values()) if index else {f"model{metadata.SUFFIX}"}
    missing = sorted(file for file in wanted if not (home / file).is_file())
    if missing:
        why = f"weight files that are missing: {len(missing)}, the first is {shown(missing[0])}"
        raise _absent(checkpoint, why, otherwise)
    return home


def _absent(checkpoint: Checkpoint, why: str, otherwise: str) -> MtpforgeError:
    return MtpforgeError(
        f"`{shown(checkpoint.location)}` is not on this machine as a whole: links would lead nowhere",
        why=why,
        fix=f"`hf download {shown(checkpoint.location)} --revision {checkpoint.revision}`; or {otherwise}",
        code=errors.MACHINE,
    )
