"""Pages in a browser: nothing is said on its console, nothing is fetched, nothing overflows, everything can be read."""

from __future__ import annotations

import pytest
from reporting import chromium
from reporting.pages import NAMES, Read, stored

from mtpforge.reporting.page import render

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        chromium.PROGRAM is None and chromium.MAY_BE_MISSING,
        reason="no Chromium is installed: `apt-get install chromium`",
    ),
]
PAPER = 718  # CSS pixels between the margins of A4, as browsers set them
AA = 4.5  # WCAG 2.2, 1.4.3: text beside what lies behind it
# Of each element with words of its own, the worst ratio; colours as computed, backgrounds through transparent ones.
CONTRAST = """
(() => {
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const lum = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length == 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  let found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
    if (!own || ['SCRIPT', 'TITLE', 'DESC', 'title', 'desc'].includes(e.tagName)) continue;
    const style = getComputedStyle(e);
    const text = rgb(e.ownerSVGElement ? style.fill : style.color);
    const [a, b] = [lum(text), lum(behind(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.tagName + ' ' + e.textContent.trim().slice(0, 40)]);
  }
  found.sort((x, y) => x[0] - y[0]);
  return found;
})()
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    assert chromium.PROGRAM, "no Chromium is installed: `.ci/chromium`, or `CHROMIUM=none` to skip these tests"
    with chromium.tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_page_is_silent_fits_and_can_be_read(tab, tmp_path, name, scheme):
    file = tmp_path / "page.html"
    file.write_text(render(stored(name), ["verify", "--target", "a" * 200]))
    tab.said.clear()
    for width in (360, 768, 1280):
        tab.open(file, width=width, scheme=scheme)
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= width
    assert [said for said in tab.said if said != {"asked for": file.as_uri()}] == []
    worst = tab.evaluate(CONTRAST)
    assert len(worst) > 25
    assert [each for each in worst if each[0] < AA] == []
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]


def spoken(tab) -> list[tuple[str, str, str]]:
    """Role, name and description of what a screen reader is given."""
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    keys = ("role", "name", "description")
    return [tuple(node.get(key, {}).get("value", "") for key in keys) for node in nodes if not node["ignored"]]


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_screen_reader_is_given_tables_pictures_and_their_names(tab, tmp_path, name, width):
    file = tmp_path / "page.html"
    text = render(stored(name), ["--x"])
    file.write_text(text.replace("<details>", "<details open>"))
    tab.open(file, width=width, scheme="light")
    found, read = spoken(tab), Read(text)
    roles = [role for role, _, _ in found]
    assert [roles.count(role) for role in ("main", "banner", "navigation", "contentinfo")] == [1] * 4
    captions = sorted(words for _, words in read.all("caption"))
    assert sorted(label for role, label, _ in found if role == "table") == captions
    for role, tags in (("row", ["tr"]), ("cell", ["td"]), ("figure", ["figure"]), ("heading", ["h1", "h2"])):
        assert roles.count(role) == len(read.all(*tags)), role
    heads = [attrs["scope"] for attrs, _ in read.all("th")]
    assert [roles.count(f"{kind}header") for kind in ("column", "row")] == [heads.count("col"), heads.count("row")]
    for role, label, more in found:
        if role in ("figure", "image", "region", "table", "DisclosureTriangle"):
            assert label[:1].isalnum(), (role, label)  # a mark that is drawn is not read out
        if role == "image":
            assert len(more) > len(label)
            assert label not in more


def test_numbers_of_a_picture_open_by_the_keyboard(tab, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(render(stored("bench")))
    tab.open(file, width=360, scheme="light")
    for _ in range(40):
        tab.press("Tab")
        if tab.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    assert not tab.evaluate("document.querySelector('details').open")
    tab.press("Enter")
    assert tab.evaluate("document.querySelector('details').open")


@pytest.mark.parametrize("name", NAMES)
def test_paper_shows_all_in_black_on_white_and_cuts_nothing(tab, tmp_path, name):
    file = tmp_path / "page.html"
    file.write_text(render(stored(name), ["verify", "--target", "a" * 200]))
    tab.open(file, width=PAPER, scheme="dark")
    tab.send("Emulation.setEmulatedMedia", media="print")
    try:
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= PAPER
        inside = "[...document.querySelectorAll('.scroll, pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert tab.evaluate(inside) == 0
        assert tab.evaluate("[...document.querySelectorAll('table')].filter(e => !e.checkVisibility()).length") == 0
        assert [each for each in tab.evaluate(CONTRAST) if each[0] < AA] == []
    finally:
        tab.send("Emulation.setEmulatedMedia", media="")


def test_first_key_leads_to_the_report(tab, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(render(stored("verify")))
    tab.open(file, width=1280, scheme="light")
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_many_drafts_and_steps_fit_a_telephone_and_paper(tab, tmp_path):
    document = stored("accept")
    found = document["acceptance"]
    first, found["k"] = found["drafts"][0], 8
    for how in ("sampled", "greedy"):
        first[how]["positions"] = first[how]["positions"][:1] * 8
    found["drafts"] = [first | {"draft": f"/models/of-a-long-name/GLM-5.2-MTP-int4-g{n}-sym"} for n in range(12)]
    file = tmp_path / "page.html"
    file.write_text(render(document))
    tab.open(file, width=360, scheme="light")
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= 360
    tab.open(file, width=PAPER, scheme="light")
    tab.send("Emulation.setEmulatedMedia", media="print")
    try:
        inside = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert tab.evaluate(inside) == 0
    finally:
        tab.send("Emulation.setEmulatedMedia", media="")
