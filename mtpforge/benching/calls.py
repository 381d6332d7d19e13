"""The function of `import mtpforge` that measures a live server: it does what its command does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtpforge.benching import benching
from mtpforge.benching.asked import CONCURRENCY, GENERATE, Asked, Endpoint
from mtpforge.benching.found import Bench
from mtpforge.drafting.request import OnRemark, Watching
from mtpforge.report import OnProgress


def bench(
    url: str,
    *,
    baseline: str | None = None,
    dataset: str = "corpus",
    text: str | Path | None = None,
    content: Sequence[str] = (),
    concurrency: Sequence[int] = CONCURRENCY,
    depths: Sequence[int] = (),
    prompts: int = 0,
    generate: int = GENERATE,
    temperature: float = 1.0,
    endpoint: Endpoint = "chat",
    model: str = "",
    on_remark: OnRemark | None = None,
    on_progress: OnProgress | None = None,
) -> Bench:
    """What drafting is worth on a live server: acceptance by its counters, speed beside one that does not draft."""
    asked = Asked(
        url=url,
        baseline=baseline,
        dataset=dataset,
        text=None if text is None else Path(text),
        content=tuple(content),
        concurrency=tuple(concurrency),
        depths=tuple(depths),
        prompts=prompts,
        generate=generate,
        temperature=temperature,
        endpoint=endpoint,
        model=model,
    )
    return benching.bench(asked, Watching.by(on_remark, on_progress))
