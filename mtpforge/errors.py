"""The one error that users see, and the exit codes.

    MtpforgeError      what, where, why, fix, code
    Where              a place in a file of a checkpoint, as a record: whose file it is may be filled in later

Library code raises it, `cli/output.py` prints it, nobody else catches it. Anything else that reaches the top is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DONE: Final = 0
ANSWER_NO: Final = 1
USAGE: Final = 2
INPUT: Final = 3
REMOTE: Final = 4
MACHINE: Final = 5
BUG: Final = 70
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141
TERMINATED: Final = 143

EXIT_CODES: Final[dict[int, str]] = {
    DONE: "done, or nothing to do and said so",
    ANSWER_NO: "the answer is no: a check failed and is named",
    USAGE: "the command line is wrong",
    INPUT: "an input cannot be used",
    REMOTE: "the hub or a server did not answer as needed",
    MACHINE: "this machine cannot: disk, memory, permission, existing output, held lock, missing engine",
    BUG: "a bug in mtpforge",
    INTERRUPTED: "interrupted",
    PIPE_CLOSED: "the reader of stdout closed it",
    TERMINATED: "terminated",
}

_MAX_NAME = 300


def shown(name: object) -> str:
    """A name from a checkpoint or a command line, safe to print: control characters escaped, length bounded."""
    whole = str(name)
    start = whole[: _MAX_NAME + 1]  # cut first: what a hostile file holds may be 100 MB long
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in start)
    return text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}... ({len(whole)} characters)"


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file of a checkpoint: `/models/glm/config.json, key a`, `org/name, x.safetensors, tensor b`.

    file: as the checkpoint names it. tensor, inside: which part of it, a tensor or in words; both "" for all of it.
    origin: the checkpoint's part in the work ("source", "target"), "" where there is one alone. checkpoint: what is
    printed before the file; readers of configs and headers leave it "", `checkpoint/error_places.py` fills it in.
    """

    file: str
    tensor: str = ""
    inside: str = ""
    origin: str = ""
    checkpoint: str = ""

    def __str__(self) -> str:
        """The words that errors print."""
        tensor = f"tensor {shown(self.tensor)}" if self.tensor else ""
        return self.checkpoint + ", ".join(part for part in (shown(self.file), tensor, self.inside) if part)


class MtpforgeError(Exception):
    """A failure that the user can act on.

    what: one sentence without a full stop; where: an option or a path as it is printed, or a place in a checkpoint's
    file as a record; why: the cause; fix: what to type next, commands in backticks; code: one of EXIT_CODES.
    """

    def __init__(self, what: str, *, where: str | Where = "", why: str = "", fix: str = "", code: int = INPUT) -> None:
        super().__init__(what)
        self.what, self.place, self.why, self.fix, self.code = what, where, why, fix, code

    @property
    def where(self) -> str:
        """The place in words, "" for none."""
        return str(self.place)

    def __str__(self) -> str:
        """The four labels of the error form, one a line; `where`, `cause` and `hint` only when there is one."""
        labelled = (("error", self.what), ("where", self.where), ("cause", self.why), (" hint", self.fix))
        return "\n".join(f"{label}: {text}" for label, text in labelled if text)
