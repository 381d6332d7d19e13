"""What to do about a layer that cannot be run, by the part it has: readers of layers know of sources alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.sourcing import stored_layer

_SOURCE: Final = "`--source"
_ABSENT: Final = "holds no MTP layer"
_OTHER: Final = "name a source"
_ONE: Final = "name a draft: `mtpforge build --target CKPT` makes one"
_WHOLE: Final = "build or download the draft again; `mtpforge verify DRAFT --target CKPT` names all that it lacks"


@contextmanager
def of_reference() -> Iterator[None]:
    """Name the option of the dense layer in every hint to name another source."""
    try:
        yield
    except MtpforgeError as error:
        error.fix = error.fix.replace(_SOURCE, "`--reference")
        raise


@contextmanager
def of_draft() -> Iterator[None]:
    """Say of a draft how to have a whole one, where the hint would be to name another source."""
    try:
        yield
    except MtpforgeError as error:
        if _SOURCE in error.fix:
            first, other, _ = error.fix.partition(_OTHER)
            error.fix = f"{first if other else ''}{_ONE}" if _ABSENT in error.what else _WHOLE
        raise


def refuse_no_draft(draft: Checkpoint) -> None:
    """MtpforgeError where a layer is none, lacks a tensor, or is stored in no known way: headers only."""
    with of_draft():
        stored_layer(draft, family_of(draft.config))


def refuse_no_reference(reference: Checkpoint) -> None:
    """The same of the dense layer."""
    with of_reference():
        stored_layer(reference, family_of(reference.config))
