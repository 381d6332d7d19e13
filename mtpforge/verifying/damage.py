"""Refusals of tensors that changed since the document beside them was written.

What is made of them would state hashes of its own, and the damage could never be told again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mtpforge import manifest
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError, shown
from mtpforge.manifest import Manifest
from mtpforge.report import OnProgress
from mtpforge.verifying.tensor_hashes import hashed

AGAIN: Final = "make it again, or fetch it again; `mtpforge verify DRAFT --target CKPT` names all that is wrong"


def changed(of: str, held: Checkpoint, wrong: Sequence[str], again: str) -> MtpforgeError:
    """What to raise. of: what holds the tensors. wrong: their names, one at least."""
    plural = "tensors" if wrong[1:] else "tensor"
    return MtpforgeError(
        f"{len(wrong)} {plural} of the {of} changed since it was made",
        where=shown(held.location),
        why=f"the first is {shown(wrong[0])}: its sha256 is another",
        fix=again,
    )


def refuse_changed_source(source: Checkpoint, on_progress: OnProgress | None = None) -> None:
    """The same of a source that is a draft of ours, or a graft: a layer made of it would have hashes of its own."""
    told = manifest.find(source) or manifest.of_graft(source)
    if told is not None:
        names = [name for name in told.tensors if name in source.names]
        refuse_changed(source, told, hashed(source, names, on_progress))


def refuse_changed(draft: Checkpoint, told: Manifest, digests: Mapping[str, str]) -> None:
    """MtpforgeError where a tensor of a draft is not what its manifest says, or is not there."""
    wrong = sorted(name for name, entry in told.tensors.items() if digests.get(name) != entry.sha256)
    if wrong:
        raise changed("draft", draft, wrong, AGAIN)
