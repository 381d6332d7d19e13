"""The functions of `import mtpforge` that judge a draft by what it predicts: each does what its command does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mtpforge import errors
from mtpforge.checkpoint import Named, open_checkpoint, open_served
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.drafting import validating
from mtpforge.drafting.request import OnRemark, Watching
from mtpforge.engines import DEFAULT
from mtpforge.engines.child import refuse_no_program
from mtpforge.engines.engine import Serving
from mtpforge.errors import MtpforgeError
from mtpforge.judging import accepting, engine_pass
from mtpforge.judging import fidelity as comparing
from mtpforge.judging.accepting import Acceptance
from mtpforge.judging.fidelity import USUAL_TOKENS, Asked, Fidelity
from mtpforge.judging.within_validate import predictions, refuse_half
from mtpforge.nextn.speculating import Recycled
from mtpforge.report import OnProgress, Report


def fidelity(
    draft: Named,
    reference: Named,
    *,
    target: Named | None = None,
    inputs: str | Path | None = None,
    compare: Sequence[Named] = (),
    k: int = 3,
    recycle: Recycled = "post-norm",
    tokens: int = USUAL_TOKENS,
    workers: int = 0,
    offline: bool = False,
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
) -> Fidelity:
    """How far a draft's predictions lie from the dense layer's on the same inputs, step by step, module by module."""
    asked = Asked(
        drafts=(draft, *compare),
        reference=reference,
        target=target,
        inputs=None if inputs is None else Path(inputs),
        tokens=tokens,
        k=k,
        recycled=recycle,
        workers=workers or os.cpu_count() or 1,
        offline=offline,
    )
    return comparing.fidelity(asked, Watching.by(on_remark, on_progress))


def accept(
    draft: Named,
    target: Named,
    text: str | Path,
    *,
    compare: Sequence[Named] = (),
    windows: int = accepting.WINDOWS,
    length: int = accepting.PROMPT,
    generate: int = accepting.GENERATE,
    temperature: float = 1.0,
    k: int = 3,
    recycle: Recycled = "post-norm",
    workers: int = 0,
    offline: bool = False,
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
) -> Acceptance:
    """How many tokens of drafts a target accepts that fits on this machine, on what it says itself."""
    asked = accepting.Asked(
        drafts=(draft, *compare),
        target=target,
        text=Path(text),
        windows=windows,
        length=length,
        generate=generate,
        temperature=temperature,
        k=k,
        recycled=recycle,
        workers=workers or os.cpu_count() or 1,
        offline=offline,
    )
    return accepting.accept(asked, Watching.by(on_remark, on_progress))


def validate(
    draft: Named,
    target: Named,
    source: Named | None = None,
    *,
    inputs: str | Path | None = None,
    reference: Named | None = None,
    engine: str = DEFAULT,
    engine_python: str | Path | None = None,
    tp: int = 1,
    ep: bool = False,
    workers: int = 0,
    offline: bool = False,
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """What `verify` finds, then what an installed engine says, and with inputs what fidelity does.

    The engine is that of this interpreter, or of the one named: its own loader, and where there is a GPU one forward
    pass. inputs: as `capture` writes them; run on the draft and on the layer of `reference`, else of the source,
    whether there is an engine or not. Facts: the engine's are `loader`, fidelity's answer is `fidelity`.
    MtpforgeError with code 5 where there is no engine to ask, unless something else said no already.
    """
    measured = None if inputs is None else Path(inputs)
    refuse_half(measured, reference, source)
    n_workers, serving = workers or os.cpu_count() or 1, Serving(tp, ep)
    held, served = open_checkpoint(draft, offline=offline), open_served(target, offline=offline)
    origin = None if source is None else open_checkpoint(source, offline=offline)
    place = held.label if held.revision else held.location
    found, missing = [validating.verified(place, served, origin, engine, serving, on_progress)], None
    try:
        python = None if engine_python is None else str(engine_python)
        found.append(_asked(place, served, origin, engine, serving, python, n_workers))
    except MtpforgeError as error:
        if error.code != errors.MACHINE:
            raise
        missing = error
    if measured is not None and (dense := source if reference is None else reference) is not None:
        watching = Watching.by(on_remark, on_progress)
        made = predictions(held, dense, served, measured, watching, workers=n_workers, offline=offline)
        if made.found is None and made.error is not None:
            raise made.error
        found.append(replace(made.report, facts={"fidelity": made.found}))
    if missing is not None and all(each.ok for each in found):
        raise missing
    return _joined(found)


def _asked(
    place: str,
    target: Checkpoint,
    source: Checkpoint | None,
    engine: str,
    serving: Serving,
    python: str | None,
    workers: int,
) -> Report:
    """What an engine says, as `loader` among the facts."""
    refuse_no_program(python)
    loaded = validating.loaded(place, target, source, engine, serving, python)
    folder = validating.folder_of(place)
    run = partial(engine_pass.engine_pass, folder, target, engine, serving, python, workers)
    answer = engine_pass.beside(loaded, run)
    return replace(answer, facts={"loader": answer.facts})


def _joined(found: Sequence[Report]) -> Report:
    """All of them as one, which says what the first one came to."""
    facts = {key: value for each in found for key, value in each.facts.items()}
    checks = tuple(check for each in found for check in each.checks)
    traps = tuple(trap for each in found for trap in each.traps)
    return Report("validate", checks, traps, facts, found[0].summary)
