"""A folder of links: the files of a checkpoint as they lie, beside small files that take the place of some.

It appears whole or not at all, as a draft does, and no file of the checkpoint is opened for writing. What tells one of
ours, so that it may be replaced, is a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mtpforge.durable import effects, files
from mtpforge.writing import claim as claims
from mtpforge.writing.folder import OVERLAY, refuse_existing

MARK: Final = OVERLAY
_OVERLAY: Final = ("overlay", "--overlay")


def write(
    out: Path, links: Mapping[str, Path], own: Mapping[str, bytes], about: Mapping[str, object], *, force: bool = False
) -> None:
    """Make `out`: name -> where the link leads, absolute; name -> bytes of a file of its own. about: for the mark.

    MtpforgeError, code 5, for an output that exists (with `force`: that is no such folder), or that cannot be written.
    """
    claim = claims.take(out, *_OVERLAY)
    try:
        with claims.on_disk(out, *_OVERLAY):
            refuse_existing(out, force=force, mark=MARK)
            files.remove(claim.draft)
            claim.draft.mkdir()
            for name, place in links.items():
                effects.link(place, claim.draft / name, hard=False)
            for name, data in {**own, MARK: (json.dumps(dict(about), indent=1) + "\n").encode()}.items():
                files.write(claim.draft / name, data)
            files.sync_names(claim.draft)
            effects.publish(claim.draft, out, claim.replaced if force else None)
            files.sync_names(out.parent)
    finally:
        claims.release(claim, keep=False)


def renew(out: Path, name: str, data: bytes) -> None:
    """Write one of the small files anew, all else stays as it lies. MtpforgeError, code 5, where it cannot be."""
    with claims.on_disk(out / name, *_OVERLAY):
        files.replace(out / name, data)
