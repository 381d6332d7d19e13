"""The child of a reference check: `python -m mtpforge.checking`.

stdin: one line of JSON (comparing.request). stdout: one line of JSON a sample, then one with the libraries' versions.
The parent keeps stdin open; when it ends, however it ends, stdin does too, and so does this process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import threading
from importlib import metadata
from typing import Any

_LIMIT = 1 << 28  # bytes of a request; a full layer with every expert takes about 2 MB


def main() -> int:
    """Answer the request; 0, or 1 after a line with an `error`."""
    request = json.loads(_line())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _answer(request)
    except ImportError as error:
        _say({"error": "import", "detail": str(error)})
        return 1
    except Exception as error:  # noqa: BLE001 -- whatever a library raises becomes the parent's message
        _say({"error": "library", "detail": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def _answer(request: dict[str, Any]) -> None:
    import torch

    from mtpforge.checking import libraries

    torch.set_num_threads(1)  # the other cores build
    used: set[str] = set()
    for sample in request["samples"]:
        parts = {
            suffix: libraries.Part(p["path"], p["dtype"], tuple(p["shape"]), p["start"])
            for suffix, p in sample["parts"].items()
        }
        shape, rows = tuple(sample["shape"]), tuple(sample["rows"])
        digest, kept = hashlib.sha256(), b""
        for band in libraries.bands(shape, rows):
            values = libraries.decode(sample["format"], sample["quantization"], parts, shape[1], band)
            raw = values.contiguous().view(torch.uint8).numpy().tobytes()
            digest.update(raw)
            kept += raw if request["values"] else b""
        used.add(libraries.DISTRIBUTIONS[sample["format"]])
        answer = {"sha256": digest.hexdigest()}
        _say(answer | ({"values": base64.b64encode(kept).decode()} if request["values"] else {}))
    _say({"libraries": {name: metadata.version(name) for name in sorted(used)}})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _line() -> bytes:
    """The first line of stdin, read past Python's buffer: a thread waits on the same descriptor afterwards."""
    read = b""
    while not read.endswith(b"\n"):
        more = os.read(0, 1 << 16)
        if not more or len(read) > _LIMIT:
            raise SystemExit(1)
        read += more
    return read


def _end_with_parent() -> None:
    while os.read(0, 1 << 16):
        pass
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # at once: the libraries take a second to tear down, and a thread waits on stdin
