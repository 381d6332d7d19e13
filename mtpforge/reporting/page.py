"""A document as one HTML page: no script, nothing to fetch, and every number of it a value of the document.

Names out of checkpoints, configs and command lines are quoted by the template, and what does not print is escaped; the
page's own policy lets nothing run and nothing load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from mtpforge.families.curves import curve_of
from mtpforge.reporting.blocks import Block, Command, Facts, Section, Table, Words
from mtpforge.reporting.checks import unchecked
from mtpforge.reporting.contents import page_of
from mtpforge.reporting.values import At
from mtpforge.tables import folded, printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_MARKS: Final = {"passed": "✓", "failed": "✗", "warning": "!", "neutral": "•"}
_CURVE: Final = "accept"  # the command whose page has a published curve beside one's own
_YARDSTICK: Final = "glm-5.2"
_TYPED: Final = re.compile(r"`([^`]+)`")


def render(document: Mapping[str, object], argv: Sequence[str] = ()) -> str:
    """The page. document: what `--json` prints, plain data; argv: what was typed after `mtpforge`."""
    from mtpforge.drafting.machine import versions

    about: dict[str, object] = {"argv": list(argv), "versions": _with_engines(versions(), document.get("engine"))}
    if document["command"] == _CURVE:
        about["published"] = _curve()
    at = At({**document, "page": about})
    page = page_of(at)
    missing = unchecked(at)
    rest = [_unchecked(missing, page.limits), _again(at["page"]["argv"]), _versions(at["page"]["versions"])]
    sections = [*page.sections, *(section for section in rest if section.blocks)]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            document=at,
            sections=sections,
            headings=[section.heading for section in sections],
            style=_text("page.css"),
            marks=_MARKS,
            data=at.value,
        )
    )


def _with_engines(here: Mapping[str, str], report: object) -> dict[str, str]:
    """Versions of this environment, with those of the one whose engine was asked: report of its loader, or none.

    A library that both have, in two versions, is told twice. Of two engines the facts are one deeper, by package.
    """
    facts = report.get("facts") if isinstance(report, Mapping) else None
    both = [facts, *facts.values()] if isinstance(facts, Mapping) else []
    told = dict(here)
    for each in both:
        stated = each.get("versions") if isinstance(each, Mapping) else None
        found: Mapping[str, object] = stated if isinstance(stated, Mapping) else {}
        for name, version in found.items():
            key = name if told.get(name, "") in ("", version) else f"{name}, where {next(iter(found))} was asked"
            told[key] = str(version)
    return told


def _unchecked(missing: Sequence[tuple[str, str]], limits: Sequence[str]) -> Section:
    table = Table("Checks that were not made", ("check", "why not"), list(missing))
    return Section("What was not checked", [*([table] if missing else []), *map(Words, limits)])


def _again(argv: At) -> Section:
    words = [word.text for word in argv]
    return Section("The same again", [Command(folded(["mtpforge", *words]))] if words else [])


def _versions(found: At) -> Section:
    pairs = [(name, at.text or "not installed") for name, at in found.items()]
    blocks: list[Block] = [Facts(pairs)]
    return Section("Versions", blocks)


@cache
def _environment() -> Environment:
    """Values are quoted for HTML, unless they are markup that was made here."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from jinja2.utils import htmlsafe_json_dumps
    from markupsafe import Markup

    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(_text),
        finalize=lambda value: _safe(value) if type(value) is str else value,
        keep_trailing_newline=True,
    )
    made.filters["ticked"] = _ticked
    made.filters["embedded"] = htmlsafe_json_dumps
    made.filters["drawn"] = Markup
    return made


def _ticked(words: str) -> Markup:
    """Words quoted, and as code what stands between backticks."""
    from markupsafe import Markup, escape

    return Markup(_TYPED.sub(r"<code>\1</code>", str(escape(_safe(words)))))  # noqa: S704 -- quoted before


def _safe(words: str) -> str:
    return "\n".join(map(printable, words.split("\n")))


def _curve() -> object:
    """What each more drafted token adds, of the release that others published: how often it is reached and accepted."""
    curve = curve_of([_YARDSTICK])
    if curve is None:
        return None
    gains = [round(after - before, 2) for before, after in pairwise((1.0, *curve.length))]
    return {"name": f"{curve.name}, published", "source": f"{curve.source}; {curve.conditions}", "gains": gains}


def _text(name: str) -> str:
    return (files("mtpforge") / "reporting" / name).read_text("utf-8")
