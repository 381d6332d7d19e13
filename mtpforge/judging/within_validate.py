"""predictions(): fidelity as a part of validate, whose other answers must reach the user whatever becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mtpforge import errors
from mtpforge.checkpoint import Named
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.drafting.request import Watching
from mtpforge.errors import MtpforgeError
from mtpforge.judging.fidelity import Asked, Fidelity, fidelity
from mtpforge.nextn.inputs import refuse_no_file
from mtpforge.report import Check, Report

_NAME: Final = "predictions"


@dataclass(frozen=True, slots=True)
class Predictions:
    """What fidelity found; None, and why, where it could not be asked, which is then a check of the report."""

    found: Fidelity | None
    report: Report
    error: MtpforgeError | None = None

    @property
    def exit_code(self) -> int:
        """Of the answer, or of what ended it early."""
        return self.report.exit_code if self.error is None else self.error.code

    def document(self) -> dict[str, object]:
        """What `--json` of validate holds of it."""
        return {"fidelity": self.found, "predictions": self.report}


def refuse_half(inputs: Path | None, reference: Named | None, source: Named | None) -> None:
    """MtpforgeError where one of two is missing that fidelity needs, or the inputs are no file."""
    if inputs is None:
        if reference is not None:
            raise MtpforgeError(
                "there are no inputs to compare the draft with `--reference` on",
                where="option `--reference`",
                why="validate runs both layers on captured inputs; synthetic ones are what `fidelity` runs without",
                fix="capture some: `mtpforge capture --target CKPT --text FILE`, then `--inputs FILE`",
                code=errors.USAGE,
            )
        return
    if reference is None and source is None:
        raise MtpforgeError(
            "there is no dense layer to compare the draft with on these inputs",
            where="option `--inputs`",
            why="a draft's predictions are judged beside those of the layer that it was made from",
            fix="name it: `--reference CKPT`, or `--source CKPT`, which compares the weights too",
            code=errors.USAGE,
        )
    refuse_no_file(inputs)


def predictions(
    draft: Named, reference: Named, target: Checkpoint, inputs: Path, watching: Watching, *, workers: int, offline: bool
) -> Predictions:
    """Three steps of draft and reference on the inputs; what ends it early is a check that was not made, with a code.

    target: whose head and embedding are taken, where its weights are at hand.
    """
    asked = Asked(
        drafts=(draft,),
        reference=reference,
        target=target if target.has_headers else None,
        inputs=inputs,
        workers=workers,
        offline=offline,
    )
    try:
        found = fidelity(asked, watching)
    except MtpforgeError as error:
        what = ": ".join(filter(None, (error.what, error.why or error.where)))
        return Predictions(None, Report("fidelity", (Check(_NAME, "not checked", what, error.fix),)), error)
    return Predictions(found, found.report)
