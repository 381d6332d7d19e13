"""Texts that are compared with stored ones."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"
REWRITE = "REWRITE_GOLDEN"  # set it, run the tests, review the diff like code


def compare(path: Path, text: str) -> None:
    """Assert that a stored text is this one; `REWRITE_GOLDEN=1` stores it instead."""
    if os.environ.get(REWRITE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    stored = path.read_text() if path.exists() else ""
    diff = "".join(difflib.unified_diff(stored.splitlines(True), text.splitlines(True), str(path), "now"))
    assert not diff, f"{diff}\n{REWRITE}=1 pytest tests/cli rewrites it"


def tidy(text: str, **places: object) -> str:
    """Text without what differs between machines: folders, free disk, hashes, seconds."""
    for name, place in sorted(places.items(), key=lambda item: -len(str(item[1]))):
        text = text.replace(str(place), f"[{name.upper()}]")
    text = re.sub(r"disk free [\d.]+ \w+", "disk free [SIZE]", text)
    text = re.sub(r"\b[0-9a-f]{40,64}\b", "[HASH]", text)
    return re.sub(r"[ ]+$", "", text, flags=re.MULTILINE)
