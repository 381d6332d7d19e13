"""What the system says about a path, as the error that users see."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mtpforge import errors
from mtpforge.errors import MtpforgeError, shown

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Words:
    """What somebody who writes says of a disk: what happened and what to do, where it is full and where it refuses."""

    full: str
    make_room: str
    refused: str
    choose: str


@contextmanager
def refusals(where: Path, words: Words) -> Iterator[None]:
    """Turn every OSError inside into MtpforgeError, code 5."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in _FULL
        of = f" ({shown(error.filename)})" if error.filename and str(error.filename) != str(where) else ""
        raise MtpforgeError(
            words.full if is_full else words.refused,
            where=shown(where),
            why=f"{shown(error.strerror or error)}{of}",
            fix=words.make_room if is_full else words.choose,
            code=errors.MACHINE,
        ) from error
