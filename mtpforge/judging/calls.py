"""The functions of `import mtpforge` that judge a draft by what it predicts: each does what its command does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mtpforge.checkpoint import Named, open_checkpoint, open_served
from mtpforge.drafting.request import OnRemark, Watching
from mtpforge.engines import DEFAULT
from mtpforge.engines.engine import Serving
from mtpforge.judging import accepting, validating
from mtpforge.judging import fidelity as comparing
from mtpforge.judging.accepting import Acceptance
from mtpforge.judging.fidelity import USUAL_TOKENS, Asked, Fidelity
from mtpforge.judging.validating import refuse_half
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
    MtpforgeError with code 5 where there is no engine to ask, unless something else said no already; of two engines one
    that is not there is a check that says so.
    """
    measured = None if inputs is None else Path(inputs)
    refuse_half(measured, reference, source)
    held = open_checkpoint(draft, offline=offline)
    asked = validating.Asked(
        draft=held.label if held.revision else held.location,
        target=open_served(target, offline=offline),
        source=None if source is None else open_checkpoint(source, offline=offline),
        inputs=measured,
        reference=reference,
        engine=engine,
        serving=Serving(tp, ep),
        python=None if engine_python is None else str(engine_python),
        workers=workers or os.cpu_count() or 1,
        offline=offline,
    )
    parts = list(validating.parts(asked, Watching.by(on_remark, on_progress)))
    missing = next((part.error for part in parts if part.error is not None and not part.is_half), None)
    if missing is not None and all(part.report.ok for part in parts):
        raise missing
    named = {part.name: part for part in parts}
    facts = dict(named["verify"].report.facts) | {"loader": named["engine"].report.facts}
    if "fidelity" in named:
        facts["fidelity"] = named["fidelity"].found
    checks = tuple(check for part in parts for check in part.report.checks)
    traps = tuple(trap for part in parts for trap in part.report.traps)
    return Report("validate", checks, traps, facts, named["verify"].report.summary)
