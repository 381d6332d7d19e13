"""The picture of scores and cut; where matplotlib is not installed, what is said then."""

from __future__ import annotations

import builtins
import xml.etree.ElementTree as ET

import pytest
from matplotlib.figure import Figure

from mtpforge.errors import MtpforgeError
from mtpforge.reporting import charts, drawing
from mtpforge.reporting.chosen import titles

SCORES = {"bias": (0.3, 0.1, 0.2, 0.4), "router-norm": (1.0, 2.0, 3.0, 4.0)}
KEPT = {"bias": (1, 2), "router-norm": (2, 3)}


def test_cut_lies_between_the_two_sides():
    assert charts.cut(SCORES["bias"], frozenset(KEPT["bias"])) == pytest.approx(0.25)
    assert charts.cut(SCORES["router-norm"], frozenset(KEPT["router-norm"])) == pytest.approx(2.5)
    assert charts.cut((1.0, 2.0), frozenset({0, 1})) is None
    assert charts.cut((1.0, 3.0, 2.0, 4.0), frozenset({0, 3})) is None  # groups, each with a cut of its own


def test_missing_library_is_named_with_what_installs_it(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *arguments):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MtpforgeError, match="a picture needs matplotlib") as caught:
        drawing.refuse(tmp_path / "scores.png")
    assert "`pip install 'mtpforge[plots]'`" in caught.value.fix
    assert caught.value.code == 5


def test_suffix_that_is_no_picture_is_refused_first(tmp_path):
    with pytest.raises(MtpforgeError, match=r"scores.txt` is no name of a picture"):
        drawing.refuse(tmp_path / "scores.txt")


def draw():
    return charts.experts(SCORES, KEPT, titles(tuple(SCORES)))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "SVG"])
def test_only_an_older_picture_is_replaced(tmp_path, suffix):
    """Another one of the same form, by matplotlib too, is somebody's own."""
    own, ours, link = (tmp_path / f"{name}.{suffix}" for name in ("own", "ours", "link"))
    Figure().savefig(own)
    before = own.read_bytes()
    drawing.save(ours, draw)
    link.symlink_to(ours)
    drawn = ours.read_bytes()
    for path, what in ((own, "no picture of mtpforge"), (link, "a link")):
        for refuse in (drawing.refuse, lambda at: drawing.save(at, draw)):
            with pytest.raises(MtpforgeError, match="the picture would take the place of something else") as caught:
                refuse(path)
            assert caught.value.why == f"it is {what}; only an older picture is replaced"
            assert caught.value.fix == "choose another name with `--picture`"
            assert caught.value.code == 5
    assert own.read_bytes() == before
    drawing.refuse(ours)
    drawing.save(ours, draw)
    assert ours.read_bytes() == drawn, "the same data gives the same bytes"


def test_picture_shows_every_method_with_its_cut(tmp_path):
    file = tmp_path / "scores.svg"
    drawing.refuse(file)
    drawing.save(file, draw)
    text = " ".join(ET.parse(file).getroot().itertext())
    for words in ("bias: highest dropped", "router-norm: lowest dropped", "2 kept", "2 dropped", "cut 0.25", "cut 2.5"):
        assert words in text
    with pytest.raises(MtpforgeError, match="cannot be written"):
        drawing.save(tmp_path / "absent" / "scores.svg", draw)
