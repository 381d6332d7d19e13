"""The `mtpforge` command, also as `python -m mtpforge`."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

_INTERRUPTED = 130  # errors.INTERRUPTED; importing it takes time in which nobody would listen
_STOPPED = (_INTERRUPTED, 143)


def main() -> int:
    """Run this process's command line; its exit code. An interrupt is heard from the first moment."""
    signal.signal(signal.SIGINT, _leave)
    from mtpforge.cli import main as run

    code = run()
    if code in _STOPPED:  # all is said and cleaned up; threads of libraries may still run, and abort at a usual end
        os._exit(code)
    return code


def _leave(_signal: int, _frame: object) -> NoReturn:
    """While the program is being loaded there is nothing to clean up."""
    try:
        os.write(2, b"error: interrupted\n")
    finally:
        os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
