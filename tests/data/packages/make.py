"""Writes aarch64.json: the file that pip would install on aarch64 Linux of each package in constraints.txt, and torch.

    python make.py

Asks pip's own index by `pip install --dry-run` for Python 3.11, wheels only: a package without one ends it with pip's
error. Where the index serves no metadata beside its files pip fetches them, torch's 0.4 GB too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TOP = HERE.parents[2]
TORCH = "torch==2.13.0"  # the Makefile's; a CPU build of it has the same platforms
PYTHON = "3.11.7"
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1)] + ["manylinux2014_aarch64"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text((TOP / "constraints.txt").read_text() + TORCH + "\n")
        of_platform = [word for platform in PLATFORMS for word in ("--platform", platform)]
        asked = ["--only-binary=:all:", "--no-deps", "--python-version", PYTHON, "--implementation", "cp", *of_platform]
        kept = ["--dry-run", "--ignore-installed", "--target", folder, "--report", str(report), "-r", str(wanted)]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *asked, *kept], check=True)
        found = json.loads(report.read_text())["install"]
    files = {each["metadata"]["name"]: each["download_info"]["url"].rpartition("/")[2] for each in found}
    (HERE / "aarch64.json").write_text(json.dumps(files, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
