"""versions_in(): the versions of a family's models that a name states: `cyankiwi/GLM-5.2-AWQ-INT4` says 5.2."""

from __future__ import annotations

import re
from typing import Final

from mtpforge.families.family import Family
from mtpforge.hub_names import model_name

# Followed by a letter it is another model (GLM-4.5V) or a size (GLM-130B). A version may have lost its point: neither
# `glm-5-2` nor `glm52` is taken for anything. `5p2` is how some hosts write 5.2.
# No possessive quantifiers: Python 3.11.2, Debian 12's, loses the place after a possessive group (cpython gh-106052).
_NUMBER: Final = r"(\d+(?:[.p]\d+)+(?![a-z0-9]|[.p]\d)|\d(?![a-z0-9]|[.]\d|[-_]\d(?![a-z0-9])))"


def versions_in(name: str, family: Family) -> tuple[str, ...]:
    """The versions that a hub id or path states, each once, spelled as the family's table does; () for none."""
    text, stem = model_name(name).lower(), re.escape(family.stem.lower())
    letters = "|".join({re.split(r"\d", version.lower())[0] for version in family.base_models})  # `v` and `r`, or none
    found = re.finditer(rf"(?<![a-z0-9]){stem}[-_ ]?({letters}){_NUMBER}", text)
    whole = (_whole(match[1] + match[2].replace("p", "."), text[match.end() :], family) for match in found)
    return tuple(dict.fromkeys(whole))


def _whole(number: str, rest: str, family: Family) -> str:
    """The number, with the words behind it where they make another version: `4.5-Air`, `V3.2-Exp-Base`."""
    for version in sorted(family.base_models, key=len, reverse=True):
        first, *words = version.lower().split("-")
        if first == number and re.match("".join(rf"[-_ ]{word}" for word in words) + "(?![a-z0-9])", rest):
            return version
    return number.upper()
