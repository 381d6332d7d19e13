"""Whose file an error is about. Readers of configs and headers know a file's name; people need its folder too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from mtpforge.errors import MtpforgeError, Where, shown

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint


def place_in(checkpoint: Checkpoint, file: str, tensor: str = "") -> Where:
    """A file of a checkpoint, or a tensor in it: `/models/glm/config.json`, `org/name, config.json`."""
    return Where(file, tensor, checkpoint=_before(checkpoint))


@contextmanager
def errors_of(checkpoint: Checkpoint) -> Iterator[None]:
    """Say in every error raised inside about a file whose checkpoint is not known yet that it is this one's."""
    with _filled(lambda _: checkpoint):
        yield


@contextmanager
def errors_by_origin(checkpoints: Mapping[str, Checkpoint]) -> Iterator[None]:
    """The same where several checkpoints are read: the place's origin says which one."""
    with _filled(lambda place: checkpoints.get(place.origin)):
        yield


@contextmanager
def _filled(holder: Callable[[Where], Checkpoint | None]) -> Iterator[None]:
    try:
        yield
    except MtpforgeError as error:
        place = error.place
        if isinstance(place, Where) and not place.checkpoint and (checkpoint := holder(place)):
            error.place = replace(place, checkpoint=_before(checkpoint))
        raise


def _before(checkpoint: Checkpoint) -> str:
    return f"{shown(checkpoint.label)}, " if checkpoint.revision else f"{shown(checkpoint.location)}/"
