"""What to do about a layer that cannot be run or compared, by the part it has: readers know of sources alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.errors import MtpforgeError, shown
from mtpforge.families import family_of
from mtpforge.sourcing import refuse_other_model, stored_layer

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


def refuse_draft_of_other_model(draft: Checkpoint, target: Checkpoint) -> None:
    """MtpforgeError for a draft of another family than the target, or of other sizes."""
    build = shlex.join(["mtpforge", "build", "--target", shown(target.label)])
    fix = f"name a draft of the target's model: `{build}` makes one"
    refuse_other_model(family_of(target.config), draft, target, ("draft", "target"), fix)


def refuse_draft_of_other_layer(draft: Checkpoint, reference: Checkpoint) -> None:
    """The same beside the dense layer."""
    fix = "name a draft of the reference's model, or the dense layer of the draft's: `--reference ORG/NAME`"
    refuse_other_model(family_of(reference.config), draft, reference, ("draft", "reference"), fix)


def refuse_target_of_other_layer(target: Checkpoint, reference: Checkpoint) -> None:
    """The same of the target whose head is used."""
    fix = "name a target of the reference's model: `--target ORG/NAME`"
    refuse_other_model(family_of(reference.config), target, reference, ("target", "reference"), fix)


def refuse_reference_of_other_model(reference: Checkpoint, target: Checkpoint) -> None:
    """The same of a dense layer, where a draft is known to be judged beside this target."""
    fix = "name the dense layer of the target's model: `--reference ORG/NAME`"
    refuse_other_model(family_of(target.config), reference, target, ("reference", "target"), fix)
