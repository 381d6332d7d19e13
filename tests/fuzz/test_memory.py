"""Files made to fill the memory: refused in a process that may have 256 MiB beside what it starts with.

Each is made of what takes most memory for its size; the largest file that is read at all is three times as large.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from fuzz import tiny

LIMIT = 256 << 20
N_BYTES = 30_000_000
CHILD = """
import resource, sys
from mtpforge.checkpoint import folder
from mtpforge.errors import MtpforgeError
from mtpforge.planning import plan
from pathlib import Path
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
try:
    opened = folder.open_folder(Path(sys.argv[1]))
    plan(opened, opened)
except MtpforgeError as error:
    print(str(error)[:1000])
"""


def filled(begin: str, piece: str, end: str) -> bytes:
    return (begin + piece * ((N_BYTES - len(begin) - len(end)) // len(piece)) + end).encode()


HEADERS = {
    "empty lists": filled('{"a":[', "[],", "0]}"),
    "empty objects": filled('{"a":[', "{},", "0]}"),
    "small numbers": filled('{"a":{"dtype":"U8","data_offsets":[0,0],"shape":[', "300,", "0]}}"),
    "one name": filled('{"', "x", '":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "depth": filled('{"a":', "[", ""),
}


def told(path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(LIMIT)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path, case):
    (tmp_path / "config.json").write_text(json.dumps(tiny.config()))
    raw = HEADERS[case]
    (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    assert told(tmp_path).startswith("error: `model.safetensors` is not a valid safetensors file")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("case", ["empty lists", "empty objects", "depth"])
def test_a_document_that_would_fill_the_memory_is_refused(tmp_path, name, case):
    (tmp_path / "config.json").write_text(json.dumps(tiny.config()))
    (tmp_path / name).write_bytes(HEADERS[case])
    assert told(tmp_path).startswith(f"error: `{name}` cannot be read as JSON")


def test_a_hole_of_a_terabyte_is_not_read(tmp_path):
    """A sparse file of 4 TB whose header is right: the plan knows its size from the header, and reads none of it."""
    (tmp_path / "config.json").write_text(json.dumps(tiny.config()))
    raw = json.dumps({"a": {"dtype": "U8", "shape": [1 << 42], "data_offsets": [0, 1 << 42]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + (1 << 42))
    assert "holds no MTP layer" in told(tmp_path)


def test_a_length_prefix_without_a_header_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.config()))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((1 << 40).to_bytes(8, "little") + b"{")
        file.truncate(1 << 41)
    assert "at most 100,000,000 are allowed" in told(tmp_path)
