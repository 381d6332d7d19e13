"""Prompts that come with mtpforge, by class of content, or of a text of the user's.

A class is a file of `mtpforge/_corpus`: every task is asked of every passage. Their order is the same on every machine.
Where more prompts are wanted than there are, they are asked again by another seed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from mtpforge.errors import MtpforgeError, shown
from mtpforge.nextn.texts import refuse_unusable

_FOLDER: Final = "_corpus"
_WARM: Final = 1_000_003  # a seed that no measured prompt has
_PASSAGE: Final = 1200  # characters of a text that a prompt holds
_READ: Final = 8_000_000  # characters of a text that are looked at


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked, and the seed of its reply."""

    text: str
    seed: int


def classes() -> tuple[str, ...]:
    """Those that come with mtpforge, by name."""
    return tuple(sorted(_bundled()))


def prompts(content: str, n: int) -> tuple[Prompt, ...]:
    """So many of a class."""
    tasks, passages = _bundled()[content]
    # by diagonals: tasks and passages both change from one prompt to the next
    pairs = [
        (tasks[(at + shift) % len(tasks)], text) for shift in range(len(tasks)) for at, text in enumerate(passages)
    ]
    return spread([task.replace("{passage}", text.strip()) for task, text in pairs], n)


def pieces(path: Path) -> list[str]:
    """A text in pieces of a prompt's length; none spans two documents."""
    refuse_unusable(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        documents = file.read(_READ).split("\f")
    found = [piece for document in documents for piece in _pieces(document)]
    if not found:
        raise MtpforgeError("the text holds no words", where=shown(path), fix="name another one")
    return found


def continued(found: Sequence[str], n: int) -> tuple[Prompt, ...]:
    """So many pieces, spread evenly over the text, to be continued."""
    some = min(n, len(found))
    return spread([f"Continue this text.\n\n{found[at * len(found) // some]}" for at in range(some)], n)


def spread(texts: Sequence[str], n: int) -> tuple[Prompt, ...]:
    """The first n; once they are through again, by the next seed."""
    return tuple(Prompt(texts[at % len(texts)], at // len(texts)) for at in range(n))


def warm(found: Sequence[Prompt], n: int) -> tuple[Prompt, ...]:
    """Prompts to warm up with: by a seed that is not measured."""
    return tuple(Prompt(found[at % len(found)].text, _WARM) for at in range(n))


def _pieces(document: str) -> list[str]:
    words = document.strip()
    return [words[at : at + _PASSAGE] for at in range(0, len(words), _PASSAGE)]


@cache
def _bundled() -> dict[str, tuple[list[str], list[str]]]:
    """Tasks and passages of every class."""
    found = {}
    for file in (files("mtpforge") / _FOLDER).iterdir():
        if file.name.endswith(".toml"):
            rows = tomllib.loads(file.read_text(encoding="utf-8"))
            found[file.name.removesuffix(".toml")] = (list(rows["tasks"]), list(rows["passages"]))
    return found
