"""The site takes in what lies beside docs/: README.md as its first page, CONTRIBUTING.md, CHANGELOG.md (`make docs`).

A hook of mkdocs; it gets the functions below by their names. Links are those of the repository, so that the files read
well there too: here those that cross the border of docs/ are led to the same page of the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

_TOP: Final = Path(__file__).parents[1]
_PAGES: Final = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
_LINK: Final = re.compile(r"\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
_IN_CODE: Final = re.compile(r"`[^`\n]+`")  # in tables GitHub wants `\|` there, Python-Markdown a bare one


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of docs/ and those beside it."""
    from mkdocs.structure.files import File

    for name, page in _PAGES.items():
        files.append(File.generated(config, page, content=(_TOP / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """A page whose links lead to pages of the site, and whose tables read here as on the hub."""
    outside = {site: name for name, site in _PAGES.items()}
    at = outside.get(page.file.src_uri)
    folder = _TOP if at else (_TOP / "docs" / page.file.src_uri).parent
    depth = page.file.src_uri.count("/")

    def led(link: re.Match[str]) -> str:
        found = (folder / link["path"]).resolve()
        if not found.is_relative_to(_TOP):
            return link[0]
        name = found.relative_to(_TOP)
        uri = name.relative_to("docs") if name.is_relative_to("docs") else _PAGES.get(str(name), name)
        return f"]({'../' * depth}{uri}{link['anchor'] or ''})"

    return _IN_CODE.sub(lambda code: code[0].replace(r"\|", "|"), _LINK.sub(led, markdown))
