"""Which page a command has. A new one is a row of `CONTENTS`, and `@options.report()` on the command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from mtpforge.reporting import benched, checks, chosen, judged
from mtpforge.reporting.blocks import Page
from mtpforge.reporting.values import At

CONTENTS: Final[Mapping[str, Callable[[At], Page]]] = {
    "build": checks.built,
    "verify": checks.verified,
    "validate": judged.validated,
    "fidelity": judged.compared,
    "accept": judged.accepted,
    "bench": benched.benched,
    "prune-plan": chosen.chosen,
}


def page_of(document: At) -> Page:
    """What there is to say of a document; of a command that has no page of its own, its checks."""
    return CONTENTS.get(document["command"].text, checks.any_report)(document)
