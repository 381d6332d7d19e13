"""The child of a reference check: `python -m mtpforge.checking`.

stdin: a line of JSON that says what to load (comparing.opening), later one on what to decode (comparing.request).
stdout: one line of JSON a sample, then one with the libraries' versions.
The parent keeps stdin open; when it ends, however it ends, stdin does too, and so does this process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from queue import SimpleQueue
from typing import Any

from mtpforge.checking import parts, plain
from mtpforge.checking.parts import Parts, Rows

_LIMIT = 1 << 28  # bytes of a request; a full layer with every expert takes about 2 MB


@dataclass(frozen=True, slots=True)
class Decoder:
    """Who decodes a format, by which distribution's version, and how: facts, parts, columns and rows -> BF16 bytes."""

    name: str
    distribution: str
    decode: Callable[[dict[str, Any], Parts, int, Rows], bytes]


def main() -> int:
    """Answer the request; 0, or 1 after a line with an `error`."""
    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    try:
        decoders = _loaded(json.loads(lines.get()))
        _answer(json.loads(lines.get()), decoders)
    except ImportError as error:
        _say({"error": "import", "detail": str(error)})
        return 1
    except Exception as error:  # noqa: BLE001 -- whatever a library raises becomes the parent's message
        _say({"error": "library", "detail": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def _loaded(opening: dict[str, Any]) -> dict[str, Decoder]:
    """Every format's decoder: plain where the opening says that there is little and there is one, else the library's.

    Importing a library takes from 5 to 20 s; torch comes with them, and is not needed for the plain ones.
    """
    few = [name for name in opening["readers"] if opening["little"] and name in plain.READERS]
    rest = [name for name in opening["readers"] if name not in few]
    decoders = {name: Decoder(plain.NAME, "numpy", partial(_plain, name)) for name in few}
    if rest:
        import torch

        from mtpforge.checking import libraries

        torch.set_num_threads(1)  # the other cores build
        libraries.load(rest)
        decoders |= {
            name: Decoder(libraries.DISTRIBUTIONS[name], libraries.DISTRIBUTIONS[name], partial(libraries.decode, name))
            for name in rest
        }
    return decoders


def _plain(name: str, _facts: dict[str, Any], weight: Parts, _columns: int, rows: Rows) -> bytes:
    return plain.decode(name, weight, rows)


def _answer(request: dict[str, Any], decoders: dict[str, Decoder]) -> None:
    used: dict[str, str] = {}
    for sample in request["samples"]:
        weight = {
            suffix: parts.Part(p["path"], p["dtype"], tuple(p["shape"]), p["start"], p["stride"])
            for suffix, p in sample["parts"].items()
        }
        decoder, shape = decoders[sample["reader"]], tuple(sample["shape"])
        digest, kept = hashlib.sha256(), b""
        for band in parts.bands(shape, tuple(sample["rows"])):
            raw = decoder.decode(sample["quantization"], weight, shape[1], band)
            digest.update(raw)
            kept += raw if request["values"] else b""
        used[decoder.name] = decoder.distribution
        answer = {"sha256": digest.hexdigest()}
        _say(answer | ({"values": base64.b64encode(kept).decode()} if request["values"] else {}))
    _say({"libraries": {name: metadata.version(used[name]) for name in sorted(used)}})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _listen(lines: SimpleQueue[bytes]) -> None:
    """Every line of stdin into the queue; at its end, which is our parent's, end the process, whatever it is at."""
    read = b""
    while len(read) <= _LIMIT and (more := os.read(0, 1 << 16)):
        *whole, read = (read + more).split(b"\n")
        for line in whole:
            lines.put(line)
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # at once: the libraries take a second to tear down, and a thread waits on stdin
