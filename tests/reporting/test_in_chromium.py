"""Pages in a browser: nothing is said on its console, nothing is fetched, nothing overflows, everything can be read."""

from __future__ import annotations

import pytest
from reporting import chromium
from reporting.pages import NAMES, stored

from mtpforge.reporting.page import render

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        chromium.PROGRAM is None and chromium.MAY_BE_MISSING,
        reason="no Chromium is installed: `apt-get install chromium`",
    ),
]
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
    assert len(worst) > 30
    assert [each for each in worst if each[0] < AA] == []
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]


def test_first_key_leads_to_the_report(tab, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(render(stored("verify")))
    tab.open(file, width=1280, scheme="light")
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
