"""Pages read back by the standard library's parser, and the slow check that their numbers are the document's."""

from __future__ import annotations

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

from mtpforge.reporting.page import render

STORED = Path(__file__).parents[1] / "data" / "reports"
NAMES = ("build", "build-plan", "validate", "verify", "fidelity", "accept", "bench", "prune-plan")
VOID = {"meta", "link", "br", "img", "input", "hr"}
SIZES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def stored(name: str) -> dict:
    return json.loads((STORED / f"{name}.json").read_text())


@cache
def rendered(name: str) -> str:
    """The page of a stored document, drawn once."""
    return render(stored(name), ["--x"])


class Read(HTMLParser):
    """elements: (tag, attributes, words inside), in the order in which they begin. document: what the page carries."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict, list[str]]] = []
        self._open: list[tuple[str, dict, list[str]]] = []
        self.feed(text)
        assert not self._open, "an element is left open"

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for element in self._open:
            element[2].append(data)

    def all(self, *tags: str) -> list[tuple[dict, str]]:
        return [(attrs, "".join(words).strip()) for tag, attrs, words in self.elements if tag in tags]

    @property
    def document(self) -> dict:
        (text,) = [
            words for attrs, words in self.all("script") if attrs == {"type": "application/json", "id": "document"}
        ]
        return json.loads(text)


def followed(document: object, pointer: str) -> object:
    """RFC 6901, plainly."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def wrong_numbers(text: str) -> list[str]:
    """Numbers of a page that are not what its document holds, or not shown as that."""
    read = Read(text)
    document, wrong = read.document, []
    for attrs, words in read.all("data"):
        value = followed(document, attrs["data-at"])
        less = followed(document, attrs["data-less"]) if "data-less" in attrs else 0
        number, _, unit = words.replace(",", "").partition(" ")
        scale = SIZES[unit] if unit else 1
        digits = len(number.partition(".")[2])
        exact = re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", number) and unit == "" and "." not in number
        room = 0 if exact and float(value) == int(value) else 0.500001 * 10**-digits * scale
        if "e" in number or (digits and not unit and digits != 4):
            room = max(room, abs(value) * 1e-3)  # four digits that count, wherever they stand
        if attrs["value"] != str(value) or abs(float(number) * scale - (value - less)) > room:
            wrong.append(f"{attrs['data-at']}: {words} of {value}")
    return wrong
