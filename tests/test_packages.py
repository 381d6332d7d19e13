"""Every dependency has wheels for Linux on aarch64, as the index said (tests/data/packages/make.py asks it again)."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

TOP = Path(__file__).parents[1]
ASKED = TOP / "tests" / "data" / "packages" / "aarch64.json"
AARCH64 = re.compile(r"manylinux(2014|_2_\d+)_aarch64")
UNPINNED = {"matplotlib"}  # an extra for pictures, which no test needs


def wheels():
    """Canonical name -> version and tags of the file that pip chose."""
    found = (parse_wheel_filename(file) for file in json.loads(ASKED.read_text()).values())
    return {name: (version, tags) for name, version, _, tags in found}


def pinned():
    lines = (TOP / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    torch = re.search(r"^TORCH \?= torch==(\S+)", (TOP / "Makefile").read_text(), re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pairs} | {"torch": Version(torch[1])}


def test_what_the_index_was_asked_is_what_is_pinned():
    assert {name: version for name, (version, _) in wheels().items()} == pinned()


def test_every_wheel_is_for_aarch64_or_for_every_machine():
    alien = {
        name: sorted(map(str, tags))
        for name, (_, tags) in wheels().items()
        if not all(tag.platform == "any" or AARCH64.fullmatch(tag.platform) for tag in tags)
    }
    assert alien == {}


def test_every_declared_dependency_is_among_them():
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    found = wheels()
    for requirement in map(Requirement, declared):
        name = canonicalize_name(requirement.name)
        assert name in found or name in UNPINNED
        if name in found:
            assert requirement.specifier.contains(found[name][0])
