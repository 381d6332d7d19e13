"""What an engine raises is its refusal: the stage, its own words, and where in its source."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAX_WORDS = 1500


class RefusedError(Exception):
    """The engine refused: the stage and its own words."""


@contextmanager
def stage(package: str, name: str) -> Iterator[None]:
    """Whatever is raised in here is the refusal of the engine in that package."""
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        raise refused(package, name, error) from error


def refused(package: str, name: str, error: Exception) -> RefusedError:
    """The refusal that an exception of the engine's stands for; the last file of its own says where."""
    home = f"{Path(sys.modules[package].__file__ or '').parent}/"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(home)]
    where = f" ({frames[-1].filename.removeprefix(home)}:{frames[-1].lineno})" if frames else ""
    words = " ".join(line.strip() for line in str(error).splitlines() if "For further information" not in line)
    return RefusedError(f"{name}: {type(error).__name__}: {words[:_MAX_WORDS]}{where}")
