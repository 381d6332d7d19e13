"""parts(): all that this machine can check of a draft, one after the other: each reaches the user as it is found.

verify         what is on disk
the engine     its own loader, and where there is a GPU one pass
predictions    fidelity, where inputs are given
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from mtpforge import errors
from mtpforge.checkpoint import Named, open_checkpoint
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.drafting import validating
from mtpforge.drafting.request import Watching
from mtpforge.engines import behind
from mtpforge.engines.child import LOADS, not_asked, refuse_no_program
from mtpforge.engines.engine import Serving
from mtpforge.errors import MtpforgeError
from mtpforge.families import family_of
from mtpforge.judging import engine_pass, roles
from mtpforge.judging import fidelity as comparing
from mtpforge.judging.fidelity import Fidelity, fidelity
from mtpforge.nextn.inputs import read, refuse_no_file
from mtpforge.report import Report

_NAME: Final = "predictions"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is judged beside what; `mtpforge.validate` says what each means. python: the engine's interpreter."""

    draft: str
    target: Checkpoint
    source: Checkpoint | None
    inputs: Path | None
    reference: Named | None
    engine: str
    serving: Serving
    python: str | None
    workers: int
    offline: bool


@dataclass(frozen=True, slots=True)
class Part:
    """One answer. error: what kept it from being asked; the report says it as a check. found: fidelity's.

    is_half: the error is that of one of two engines, the other one answered.
    """

    name: Literal["verify", "engine", "fidelity"]
    report: Report
    error: MtpforgeError | None = None
    found: Fidelity | None = None
    is_half: bool = False

    @property
    def exit_code(self) -> int:
        """Of the answer, or of what ended it early: a no comes first."""
        return self.report.exit_code or (errors.DONE if self.error is None else self.error.code)


def parts(asked: Asked, watching: Watching) -> Iterator[Part]:
    """Each part when it is done. MtpforgeError for what no part can be asked with, before the first."""
    refuse_no_program(asked.python, several=len(behind(asked.engine)) > 1)
    _refuse_unusable(asked)
    draft, target, source = asked.draft, asked.target, asked.source
    engine, serving, on_progress = asked.engine, asked.serving, watching.on_progress
    found = validating.verified(draft, target, source, engine, serving, on_progress)
    yield Part("verify", found)
    yield _engine(asked, found, watching)
    if asked.inputs is not None:
        yield _predictions(asked, asked.inputs, watching)


def _engine(asked: Asked, found: Report, watching: Watching) -> Part:
    """What the loader says, and the pass. found: by verify."""
    serving, engine = asked.serving, asked.engine
    try:
        loaded = validating.loaded(
            asked.draft, asked.target, asked.source, engine, serving, asked.python, validating.serving_fix(found)
        )
    except MtpforgeError as error:
        if error.code != errors.MACHINE:
            raise
        return Part("engine", Report("validate", (not_asked(error),)), error)
    report = engine_pass.beside(loaded, lambda: _pass(asked, watching))
    left = next((c for c in loaded.checks if c.name.startswith(LOADS) and c.verdict == "not checked"), None)
    if left is None:
        return Part("engine", report)
    half = MtpforgeError("one of two engines gave no answer", why=left.detail, fix=left.fix, code=errors.MACHINE)
    return Part("engine", report, half, is_half=True)


def _pass(asked: Asked, watching: Watching) -> Report:
    folder = validating.folder_of(asked.draft)
    how = (asked.engine, asked.serving, asked.python, asked.workers, watching.on_progress)
    return engine_pass.engine_pass(folder, asked.target, *how)


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


def _refuse_unusable(asked: Asked) -> None:
    """MtpforgeError for inputs and a dense layer that no fidelity would come of: headers and token ids tell.

    What cannot be reached is left to it: the other parts need none of it.
    """
    if asked.inputs is None:
        return
    try:
        dense = open_checkpoint(_dense(asked), offline=asked.offline)
        if asked.reference is not None:  # verify refuses a source of another model
            roles.refuse_reference_of_other_model(dense, asked.target)
        width = family_of(dense.config).text(dense.config).get("hidden_size")
        read(asked.inputs, hidden_size=width if type(width) is int else None)
        roles.refuse_no_reference(dense)
    except MtpforgeError as error:
        if error.code == errors.INPUT:
            raise


def _dense(asked: Asked) -> Named:
    """The layer that fidelity measures by; there is one wherever there are inputs."""
    found = asked.source if asked.reference is None else asked.reference
    return "" if found is None else found


def _predictions(asked: Asked, inputs: Path, watching: Watching) -> Part:
    """Three steps of draft and reference on the inputs, with the target's head where its weights are at hand."""
    wanted = comparing.Asked(
        drafts=(asked.draft,),
        reference=_dense(asked),
        target=asked.target if asked.target.has_headers else None,
        inputs=inputs,
        workers=asked.workers,
        offline=asked.offline,
    )
    try:
        found = fidelity(wanted, watching)
    except MtpforgeError as error:
        return Part("fidelity", Report("validate", (replace(not_asked(error), name=_NAME),)), error)
    return Part("fidelity", found.report, found=found)
