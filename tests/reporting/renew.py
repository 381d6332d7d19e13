"""Measures what pages are tested with anew, and takes the pictures of the documentation: run from the top folder.

PYTHONPATH=tests python tests/reporting/renew.py bench       tests/data/reports/bench.json, on two small servers
PYTHONPATH=tests python tests/reporting/renew.py pictures    docs/pictures, by Chromium
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from openai_server import by_chance, serving
from PIL import Image
from reporting import chromium
from reporting.pages import stored

from mtpforge.reporting.page import render

TOP = Path(__file__).parents[2]
# A healthy draft that costs a third of a step alone and more than one where many are served: the gain turns to a loss.
PACE, DRAFTING = 0.003, 0.0008
WORDS = ("--content", "prose,code", "--concurrency", "1,4,8", "--generate", "96")
# Name of a stored document -> width in CSS pixels, height of the picture.
PICTURES = {"accept": (1280, 900), "bench": (360, 1400)}


def bench() -> None:
    """The command's document, beside a server that does not draft."""
    with (
        serving(3, by_chance(0.84, 0.66, 0.49), lambda running: PACE + DRAFTING * (1 + running)) as drafting,
        serving(0, None, lambda _: PACE) as plain,
    ):
        for server in (drafting, plain):
            server.models = [{"id": "GLM-5.2-NVFP4", "root": "GLM-5.2-NVFP4"}]
        command = [sys.executable, "-m", "mtpforge", "bench", drafting.url, "--baseline", plain.url, *WORDS, "--json"]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for server, port in ((drafting, 8000), (plain, 8001)):
            text = text.replace(server.url, f"http://127.0.0.1:{port}")
    (TOP / "tests" / "data" / "reports" / "bench.json").write_text(json.dumps(json.loads(text), indent=2) + "\n")


def pictures() -> None:
    """Of some stored documents as pages, in the light colours, 64 of them."""
    with tempfile.TemporaryDirectory() as home, chromium.tab(Path(home) / "profile") as tab:
        for name, (width, height) in PICTURES.items():
            page = Path(home) / f"{name}.html"
            page.write_text(render(stored(name)))
            tab.open(page, width=width, scheme="light", height=height)
            picture = TOP / "docs" / "pictures" / f"report-{name}-{width}.png"
            tab.picture(picture, whole=False)
            with Image.open(picture) as seen:
                seen.convert("RGB").quantize(64).save(picture, optimize=True)


if __name__ == "__main__":
    {"bench": bench, "pictures": pictures}[sys.argv[1]]()
