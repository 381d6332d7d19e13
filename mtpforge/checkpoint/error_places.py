"""Whose file an error is about. Readers of configs and headers know a file's name; people need its folder too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mtpforge.errors import MtpforgeError, shown

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint

_BARE_FILE: Final = re.compile(r"(?!/)[^\s,]+\.(?:json|safetensors)(?:,|$)")


@contextmanager
def errors_of(checkpoint: Checkpoint) -> Iterator[None]:
    """Put the checkpoint before the file in every error raised inside: `/models/glm/config.json, ...`, `org/name, ...`.

    An error that says it already is left as it is.
    """
    try:
        yield
    except MtpforgeError as error:
        if _BARE_FILE.match(error.where) and not error.where.startswith(shown(checkpoint.label)):
            error.where = place_in(checkpoint, error.where)
        raise


def place_in(checkpoint: Checkpoint, file: str) -> str:
    """A file of a checkpoint as errors name it; `file` may go on after the name."""
    if checkpoint.revision:
        return f"{shown(checkpoint.label)}, {file}"
    return f"{shown(checkpoint.location)}/{file}"
