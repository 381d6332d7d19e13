"""Links and anchors of README.md, CONTRIBUTING.md and docs/ lead somewhere, on the hub as on the site (`make docs`)."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt

TOP = Path(__file__).parents[1]
DOCS = TOP / "docs"
BESIDE = {"index.md": "README.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
PAGES = sorted([*DOCS.rglob("*.md"), *(TOP / name for name in BESIDE.values())])
PARSER = MarkdownIt("commonmark").enable("table")


def inline(text):
    return [token for block in PARSER.parse(text) if block.type == "inline" for token in block.children or []]


def anchors(text):
    """Anchors of the headings: lower case, punctuation gone, blanks as hyphens, repeated ones numbered."""
    seen: dict[str, int] = {}
    found = set()
    blocks = PARSER.parse(text)
    for mark, heading in pairwise(blocks):
        if mark.type == "heading_open":
            words = "".join(token.content for token in heading.children or [])
            name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            found.add(f"{name}-{seen[name]}" if name in seen else name)
            seen[name] = seen.get(name, 0) + 1
    return found


def dead(page, text):
    """Links of a page's text that lead nowhere."""
    wrong = []
    for token in inline(text):
        link = token.attrGet("href") if token.type == "link_open" else token.attrGet("src")
        if not isinstance(link, str) or re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(TOP) or not target.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(text if target == page else target.read_text()):
            wrong.append(f"{link}: no such heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_no_link_of_a_page_is_dead(page):
    assert dead(page, page.read_text()) == []


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("serving.md", []),
        ("#what-it-is-2-x", []),
        ("performance.md#on-a-gpu", []),
        ("https://example.org/x.md", []),
        ("nothing.md", ["nothing.md: no such file"]),
        ("../../etc/passwd", ["../../etc/passwd: no such file"]),
        ("performance.md#on-a-cpu", ["performance.md#on-a-cpu: no such heading"]),
        ("#nowhere", ["#nowhere: no such heading"]),
    ],
)
def test_what_a_dead_link_is(link, said):
    assert dead(DOCS / "heads.md", f"# What it is, 2 `x`\n\n| a |\n|---|\n| [here]({link}) |\n") == said


def entries(nav):
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from entries(value) if isinstance(value, list) else [value]


def test_site_has_every_page_once():
    nav = list(entries(yaml.safe_load((TOP / "mkdocs.yml").read_text())["nav"]))
    assert sorted(nav) == sorted([*(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")), *BESIDE])


def test_every_page_is_reached_from_the_readme():
    reached, left = set(), [TOP / "README.md"]
    while left:
        page = left.pop()
        reached.add(page)
        links = (token.attrGet("href") for token in inline(page.read_text()) if token.type == "link_open")
        paths = [(page.parent / str(link).partition("#")[0]).resolve() for link in links if ":" not in str(link)]
        left += [path for path in paths if path.suffix == ".md" and path not in reached]
    assert [str(page.relative_to(TOP)) for page in DOCS.rglob("*.md") if page not in reached] == []
