"""Pages: every number is the document's, names are quoted, same data gives same bytes, machines can read it."""

from __future__ import annotations

import copy
import re

import pytest
from reporting.pages import NAMES, Read, followed, rendered, stored, wrong_numbers

import mtpforge
from mtpforge.errors import MtpforgeError
from mtpforge.report import Check, Report
from mtpforge.reporting.page import render

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>`\"'&\u202e$x_1$ --> ]]>"


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_the_document_s(name):
    text = rendered(name)
    read = Read(text)
    assert wrong_numbers(text) == []
    assert len(read.all("data")) >= 3
    assert {key: value for key, value in read.document.items() if key != "page"} == stored(name)
    bare = [words for _, words in read.all("td") if re.fullmatch(r"-?[\d.,]+( [kMGT]?B)?", words)]
    inside = [words for _, words in read.all("data")]
    assert [words for words in bare if words not in inside] == []


@pytest.mark.parametrize(
    ("name", "pointer"),
    [
        ("build", "/report/facts/n_tensors"),
        ("build-plan", "/plan/facts/read_bytes"),
        ("validate", "/report/facts/relative_error/self_attn.o_proj"),
        ("verify", "/report/facts/n_bytes"),
        ("fidelity", "/fidelity/drafts/0/steps/0/total_variation"),
        ("accept", "/acceptance/drafts/0/sampled/positions/0/mean"),
        ("bench", "/bench/totals/0/gain/mean"),
        ("prune-plan", "/scores/bias/3"),
    ],
)
def test_number_that_differs_is_found_on_both_sides(name, pointer):
    text, value = rendered(name), followed(stored(name), pointer)
    shown = re.search(rf'<data value="[^"]*" data-at="{pointer}">[^<]*</data>', text)[0]
    assert str(value) in shown
    assert wrong_numbers(text.replace(shown, re.sub(">[^<]*<", ">777.5<", shown))) != []
    other = copy.deepcopy(stored(name))
    *way, last = pointer.split("/")
    place = followed(other, "/".join(way))
    place[int(last) if isinstance(place, list) else last] = value * 3 + 1
    assert shown not in render(other)


def test_same_document_gives_the_same_bytes_whatever_the_user_s_own_settings_are():
    import matplotlib as mpl

    first = rendered("fidelity")
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        assert render(stored("fidelity"), ["--x"]) == first


VLLM = {"versions": {"vllm": "0.33.0", "torch": "2.13.0+cu130"}}
SGLANG = {"versions": {"sglang": "0.5.23", "torch": "2.12.1"}}


@pytest.mark.parametrize(
    ("here", "facts", "told"),
    [
        ({"torch": "2.13.0+cu130", "vllm": "", "sglang": ""}, VLLM, {"vllm": "0.33.0"}),
        (
            {"torch": "2.10.0", "vllm": "0.30.0"},
            VLLM,
            {"vllm, where vllm was asked": "0.33.0", "torch, where vllm was asked": "2.13.0+cu130"},
        ),
        (
            {"torch": "2.13.0+cu130", "vllm": "", "sglang": ""},
            {"vllm": VLLM, "sglang": SGLANG},
            {"vllm": "0.33.0", "sglang": "0.5.23", "torch, where sglang was asked": "2.12.1"},
        ),
        ({"torch": "2.10.0", "vllm": ""}, {"versions": 5}, {}),
    ],
)
def test_version_of_the_engine_that_was_asked_is_on_the_page(monkeypatch, here, facts, told):
    monkeypatch.setattr("mtpforge.drafting.machine.versions", lambda: here)
    document = stored("validate")
    document["engine"]["facts"] = {**document["engine"]["facts"], "versions": {}, **facts}
    found = Read(render(document)).document["page"]["versions"]
    assert found == here | told


@pytest.mark.parametrize("name", NAMES)
def test_name_out_of_a_checkpoint_is_only_ever_text(name):
    def spoiled(value):
        match value:
            case dict():
                return {key: spoiled(item) for key, item in value.items()}
            case list():
                return [spoiled(item) for item in value]
            case str() if value not in ("passed", "failed", "warning", "not checked", "note", "error"):
                return value + EVIL
        return value

    document = spoiled(stored(name)) | {"command": stored(name)["command"]}
    text = render(document, [EVIL])
    read = Read(text)
    assert len(read.all("script")) == 1
    assert read.all("img") == []
    assert not [attrs for _, attrs, _ in read.elements if any(key.startswith("on") for key in attrs)]
    assert "\u202e" not in text
    assert {key: value for key, value in read.document.items() if key != "page"} == document


@pytest.mark.parametrize("name", NAMES)
def test_page_fetches_nothing_and_names_everything(name):
    text = rendered(name)
    read = Read(text)
    assert not re.search(
        r'(?:src|href)="(?!#)|url\((?!#)|@import|<link', text.partition('<script type="application')[0]
    )
    ids = [attrs["id"] for _, attrs, _ in read.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs, _ in read.elements:
        for label in attrs.get("aria-labelledby", "").split():
            assert label in ids
        if attrs.get("href", "").startswith("#"):
            assert attrs["href"][1:] in ids
    assert [len(read.all(tag)) for tag in ("main", "header", "footer", "nav", "h1", "title")[:5]] == [1] * 5
    assert [tag for tag, _, _ in read.elements if re.fullmatch("h[1-6]", tag)][:2] == ["h1", "h2"]
    assert not read.all("h3")
    captions = [words for _, words in read.all("caption")]
    assert len(captions) == len(set(captions)), "a screen reader lists tables by these"
    assert all(attrs.get("scope") in ("row", "col") for attrs, _ in read.all("th"))
    assert read.all("html")[0][0] == {"lang": "en"}
    drawn = [attrs for attrs, _ in read.all("svg")]
    assert len(drawn) == len(read.all("details")) + (name == "fidelity")  # one has its numbers beside it
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in drawn)
    assert not re.search(r"(?:fill|stroke): #", text)


def test_published_gains_are_what_each_more_token_adds():
    """InferenceX, golden_al_distribution/glm5.2_mtp.yaml: 1.84 2.50 2.99 3.33 3.61 3.78 3.91 4.06."""
    curve = Read(rendered("accept")).document["page"]["published"]
    assert curve["gains"] == [0.84, 0.66, 0.49, 0.34, 0.28, 0.17, 0.13, 0.15]


def test_report_that_says_no_is_a_page_too(tmp_path):
    report = Report(
        "verify", (Check("names", "failed", "one is missing", "`mtpforge build`"), Check("files", "passed", ""))
    )
    text = mtpforge.write_page(report, tmp_path / "new" / "p.html").read_text()
    assert [w for a, w in Read(text).all("p") if a.get("class") == "answer failed"] == ["✗ failed"]
    assert Read(text).document["exit_code"] == 1
    mtpforge.write_page(report, tmp_path / "new" / "p.html")  # an older page gives way
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.html"]


@pytest.mark.parametrize(
    ("name", "code", "why"),
    [
        ("p.txt", 2, "a report is one HTML file"),
        ("mine.html", 5, "it is no report of mtpforge; only an older report is replaced"),
        ("link.html", 5, "it is a link; only an older report is replaced"),
        ("folder.html", 5, "it is a folder; only an older report is replaced"),
        ("mine.html/p.html", 5, None),
    ],
)
def test_place_that_is_not_for_a_page_is_refused_and_left_alone(tmp_path, name, code, why):
    (tmp_path / "mine.html").write_text("mine")
    (tmp_path / "link.html").symlink_to("mine.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(MtpforgeError) as caught:
        mtpforge.write_page(Report("verify", ()), tmp_path / name)
    assert caught.value.code == code
    assert why is None or caught.value.why == why
    assert (tmp_path / "mine.html").read_text() == "mine"
