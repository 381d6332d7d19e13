"""Figures as files, and as parts of a page: text stays text, colours are the page's, same data gives same bytes.

matplotlib's settings are its defaults here, whatever a user's own file says.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from mtpforge import errors
from mtpforge.durable import files
from mtpforge.errors import MtpforgeError, shown
from mtpforge.reporting import placing
from mtpforge.reporting.blocks import Picture, Table
from mtpforge.reporting.charts import COLORS, INK
from mtpforge.writing import outside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES: Final = (".png", ".svg", ".pdf")
_SETTINGS: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mtpforge",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 10.0,
    "savefig.dpi": 150.0,
}
_PAGE_COLORS: Final = {
    **{color: f"var(--series-{number})" for number, color in enumerate(COLORS, 1)},
    INK: "currentColor",
}
_MARK: Final = "drawn by mtpforge"
_MARKED: Final[dict[str, dict[str, str | None]]] = {  # by which an older picture is told; what else would change goes
    ".png": {"Software": _MARK},
    ".svg": {"Creator": _MARK, "Date": None},
    ".pdf": {"Creator": _MARK, "CreationDate": None},
}
_END: Final = 1 << 16  # bytes of either end in which it stands
_NO_DATE: Final = {"Date": None, "Creator": None}
_FONT: Final = re.compile(r"font: ([\d.]+)px [^;\"]*")
_NAMES: Final = re.compile(r'(\bid="|\burl\(#|\bhref="#)')


def refuse_no_library(option: str) -> None:
    """MtpforgeError where nothing can be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MtpforgeError(
            f"{'a picture' if option == '--picture' else 'a report'} needs matplotlib, which is not installed",
            where=f"option `{option}`",
            fix=f"`pip install 'mtpforge[plots]'`, or leave `{option}` out",
            code=errors.MACHINE,
        ) from error


def refuse(path: Path) -> None:
    """MtpforgeError where no picture could be drawn there.

    No library, a suffix that it does not write, a folder that is missing, a checkpoint's or cannot be written, another
    file than an older picture.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise MtpforgeError(
            f"`{shown(path)}` is no name of a picture",
            where="option `--picture`",
            why=f"the suffix decides: {', '.join(_SUFFIXES)}",
            fix=f"`--picture {shown(path.with_suffix('.png'))}`",
            code=errors.USAGE,
        )
    refuse_no_library("--picture")
    if not os.path.isdir(path.parent):  # noqa: PTH112 -- a name that is too long is no folder either
        raise MtpforgeError(
            "the picture cannot be written there",
            where=shown(path),
            why=f"there is no folder `{shown(path.parent)}`",
            fix="make it, or choose another place with `--picture`",
            code=errors.MACHINE,
        )
    placing.refuse_other(path, "picture", _is_picture)
    outside.refuse_checkpoint(path, "picture", "--picture")
    placing.refuse_unwritable(path, "picture")


def refuse_inside(path: Path, folders: Iterable[Path]) -> None:
    """MtpforgeError where a picture would lie in one of the folders."""
    outside.refuse_inside(path, "picture", "--picture", folders)


def save(path: Path, draw: Callable[[], Figure]) -> None:
    """Write a figure as a picture, at once. MtpforgeError where the place cannot be written, or is taken by now."""
    placing.refuse_other(path, "picture", _is_picture)
    suffix, drawn = path.suffix.lower(), io.BytesIO()
    try:
        path.parent.stat()
        with _settings():
            draw().savefig(drawn, format=suffix[1:], metadata=_MARKED[suffix])
        files.replace(path.absolute(), drawn.getvalue())
    except OSError as error:
        raise MtpforgeError(
            f"`{shown(path)}` cannot be written",
            where="option `--picture`",
            why=error.strerror or str(error),
            code=errors.MACHINE,
        ) from error


def _is_picture(file: BinaryIO) -> bool:
    """Whether `save` wrote it; what older versions drew is not marked, and stays."""
    begin = file.read(_END)
    file.seek(max(0, file.seek(0, os.SEEK_END) - _END))
    return _MARK.encode() in begin or _MARK.encode() in file.read()


def pictured(name: str, title: str, says: str, draw: Callable[[], Figure], table: Table) -> Picture:
    """A figure for a page. name: what its ids begin with, another one for each picture of the page."""
    with _settings(), io.StringIO() as file:
        draw().savefig(file, format="svg", transparent=True, metadata=_NO_DATE)
        drawn = file.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    view = re.search(r'viewBox="([\d. ]+)"', drawn)
    assert view is not None  # noqa: S101 -- matplotlib writes one
    inside = drawn[drawn.index(">") + 1 : drawn.rindex("</svg>")]
    for color, own in _PAGE_COLORS.items():
        inside = inside.replace(color, own)
    inside = _FONT.sub(r"font-size: \1px", inside).replace("xlink:href", "href")
    return Picture(name, title, says, view[1], _NAMES.sub(rf"\g<1>{name}-", inside), table)


@contextmanager
def _settings() -> Iterator[None]:
    from matplotlib import style

    with style.context(["default", _SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the reader's own fonts have it
        yield
