"""The functions of `import mtpforge` that judge a draft by what it predicts: each does what its command does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mtpforge.checkpoint import Named
from mtpforge.drafting.request import OnRemark, Watching
from mtpforge.judging import accepting
from mtpforge.judging import fidelity as comparing
from mtpforge.judging.accepting import Acceptance
from mtpforge.judging.fidelity import USUAL_TOKENS, Asked, Fidelity
from mtpforge.nextn.speculating import Recycled
from mtpforge.report import OnProgress


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
