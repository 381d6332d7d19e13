"""stdout and stderr, which may be closed, full, or read by nobody.

stdout   what was asked for: a reader that left ends the command with 141, any other failure with 5
stderr   remarks: where they cannot be written, the command goes on without them
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, TextIO, cast

from mtpforge import errors
from mtpforge.errors import MtpforgeError

if TYPE_CHECKING:
    from collections.abc import Callable

# A descriptor that is closed at the start is given to the next file that is opened: a line of text would land in it.
# Nothing can be written to the one that stands in for stdout, so that what was asked for is not lost without a word.
_INSTEAD: Final = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)


class HungUpError(Exception):
    """Nobody reads stdout any more. No OSError, so that no library in between takes it for one of its own."""


class Stream:
    """A text stream whose failure is told once; afterwards it swallows what is written.

    required: a failure raises HungUpError or MtpforgeError, else it is passed over.
    """

    def __init__(self, stream: TextIO, *, required: bool) -> None:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks is no crash
        self._stream, self._required = stream, required

    def __getattr__(self, name: str) -> object:
        """Everything else is the stream's own: `isatty`, `encoding`, `fileno`."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, perhaps only into a buffer."""
        self._guarded(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand everything over to the operating system."""
        self._guarded(self._stream.flush)

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            # also what is in the buffer still: the interpreter would complain about it at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._required:
                raise _refusal(error) from error


def _refusal(error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):
        return HungUpError()
    return MtpforgeError(
        "stdout cannot be written",
        why=str(error.strerror),
        fix="send it to a file on a disk with room, or to `/dev/null`",
        code=errors.MACHINE,
    )


def standard() -> tuple[TextIO, TextIO]:
    """Stdout and stderr of this process."""
    return cast("TextIO", Stream(sys.stdout, required=True)), cast("TextIO", Stream(sys.stderr, required=False))


def open_closed() -> None:
    """Give the standard descriptors that are closed something to lead to."""
    for descriptor, flags in enumerate(_INSTEAD):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest free one: this
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 -- for good
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
