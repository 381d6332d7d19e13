"""The list of experts to keep as a file: a JSON list of numbers in the source, or an object that holds it as `kept`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from mtpforge.errors import MtpforgeError, shown

_MAX_BYTES: Final = 1 << 20  # 65,536 numbers take half of it
_FIX: Final = "a JSON list of numbers, `[0, 3, 4]`, or what `mtpforge prune-plan --json` prints"


def read(path: Path) -> tuple[int, ...]:
    """The numbers, ascending. MtpforgeError for a file that cannot be read, is no list, or names an expert twice."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        body = json.loads(raw) if len(raw) <= _MAX_BYTES else None
    except OSError as error:
        raise MtpforgeError(
            f"`{shown(path)}` cannot be read",
            where="option `--keep-experts`",
            why=error.strerror or str(error),
            fix=f"name {_FIX}; or a checkpoint that was pruned before",
        ) from error
    except (ValueError, RecursionError) as error:
        raise MtpforgeError(
            f"`{shown(path)}` is no JSON", where="option `--keep-experts`", why=shown(error), fix=_FIX
        ) from error
    numbers = body.get("kept") if isinstance(body, dict) else body
    if not isinstance(numbers, list) or not numbers or not all(type(number) is int for number in numbers):
        raise MtpforgeError(f"`{shown(path)}` is no list of experts", where="option `--keep-experts`", fix=_FIX)
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise MtpforgeError(
            f"`{shown(path)}` names expert {twice[0]} twice",
            where="option `--keep-experts`",
            why="a draft holds an expert once",
            fix="name every expert once",
        )
    return tuple(sorted(numbers))
