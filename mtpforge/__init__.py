"""mtpforge: builds the MTP draft layer of GLM-5.2 in exactly the scheme that a quantized target asks for.

    plan(source, target)    decide everything about a draft, from headers and configs
    build(plan, ...)        make it
    verify(draft, target)   open it again and judge it
    inspect(checkpoint)     what a checkpoint holds

Each name is loaded on first use: `import mtpforge` costs nothing and brings no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mtpforge.building import build
    from mtpforge.errors import MtpforgeError
    from mtpforge.inspecting import inspect
    from mtpforge.planning import plan
    from mtpforge.verifying import verify

    __version__: str

__all__ = ["MtpforgeError", "__version__", "build", "inspect", "plan", "verify"]

_PLACES: Final = {
    "MtpforgeError": "mtpforge.errors",
    "build": "mtpforge.building",
    "inspect": "mtpforge.inspecting",
    "plan": "mtpforge.planning",
    "verify": "mtpforge.verifying",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    """The installed version; a source tree on the path without an installation has none."""
    from importlib.metadata import PackageNotFoundError, version  # a third of the time that `--help` takes

    try:
        return version("mtpforge")
    except PackageNotFoundError:
        return "0+source"
