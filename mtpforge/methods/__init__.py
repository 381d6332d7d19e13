"""Methods: the table by name. A method is one file and one line here; what reads the table finds it by itself."""

from __future__ import annotations

from typing import Final

from mtpforge import errors
from mtpforge.errors import MtpforgeError, shown
from mtpforge.methods import gptq, hqq, mse, rtn
from mtpforge.methods.method import Method

__all__ = ["METHODS", "RTN", "Method", "method"]

RTN: Final = rtn.METHOD
METHODS: Final[dict[str, Method]] = {m.name: m for m in (RTN, mse.METHOD, hqq.METHOD, gptq.METHOD)}


def method(name: str) -> Method:
    """The method of a name; MtpforgeError for another."""
    if name not in METHODS:
        raise MtpforgeError(
            f"`{shown(name)}` is no method of finding scales",
            where="option `--scales`",
            fix=f"one of {', '.join(METHODS)}",
            code=errors.USAGE,
        )
    return METHODS[name]
