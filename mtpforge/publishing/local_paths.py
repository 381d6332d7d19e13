"""without(): words that others read, such as an engine's errors, without the paths of the machine they were said on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

# What a file is called tells which one was meant; what a folder is called may be a person's name.
_TOLD: Final = (".json", ".py", ".safetensors", ".so")
_LEFT_OUT: Final = "..."
_MOST: Final = 10_000  # characters: more than anybody prints, few enough for a hostile document to cost nothing
_START: Final = r"(?:(?:~[\w.-]*|\.\.?|[A-Za-z]:)?[/\\]+(?=[^\s/\\]))"
_PATH: Final = re.compile(
    rf"""
    (?P<address>\bhttps?://\S+)
    | (?P<quote>['"`])(?P<quoted>(?:file:)?{_START}.*?)(?:(?P=quote)|$)  # quoted, it may hold spaces
    | (?<![\w.~-])(?P<bare>{_START}[^\s'"`,;:()\[\]{{}}<>|]*)
    """,
    re.VERBOSE | re.DOTALL,
)


def without(said: str, known: Iterable[str] = ()) -> str:
    """The same with `.../model.safetensors` for a path, and `...` for one whose last part is no known kind of file.

    known: folders of this machine, whose names may hold spaces. Relative paths stay: they look like `org/name`.
    """
    said = said[:_MOST]
    for folder in known:
        if folder.startswith("/") and folder != "/":
            said = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?![\w.-])", "/-", said)
    return _PATH.sub(_cut, said)


def _cut(found: re.Match[str]) -> str:
    if found["address"]:
        return found["address"]
    quote, path = found["quote"] or "", found["quoted"] or found["bare"]
    name = PurePosixPath(path.replace("\\", "/")).name
    is_told = name.endswith(_TOLD)
    return f"{quote}{_LEFT_OUT}{f'/{name}' if is_told else ''}{quote}"
