"""The tiny demo built by real processes, to be killed, stopped and run beside each other; see `build_demo.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

TOP = Path(__file__).parents[2]


@contextmanager
def builder():
    """A function that gives an order and returns the answer."""
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("build_demo.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=TOP,
        env=os.environ | {"PYTHONPATH": str(TOP)},
    )

    def order(*words):
        child.stdin.write(" ".join(map(str, words)) + "\n")
        child.stdin.flush()
        return int(child.stdout.readline())

    with child:
        yield order
        child.stdin.close()


def files(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def hidden(out):
    return out.parent / f".{out.name}.mtpforge-tmp"


def said(out):
    return Path(f"{out}.said").read_text()
