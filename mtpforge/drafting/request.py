"""What is asked for: one draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from mtpforge.checkpoint import Named
from mtpforge.drafting.remarks import Remark
from mtpforge.engines import DEFAULT
from mtpforge.engines.engine import Serving
from mtpforge.methods import RTN, method
from mtpforge.report import OnProgress
from mtpforge.scheme import Scheme

CheckMode: TypeAlias = Literal["full", "sample", "off"]
Count: TypeAlias = int | Literal["match", "keep"]
OnRemark: TypeAlias = Callable[[Remark], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One draft, as a user asks for it; every default is the command line's.

    target: None for an extract, where the source stands in for it. source: None to have it chosen. keep_experts:
    numbers of the source, a file that lists them, or a checkpoint that was pruned before. standalone: make a draft also
    for a target whose own layer loads as it is. overlay: folder of links to write, where the engine has
    to be told of the target. tp, ep, kv_cache_dtype: how it will be served.

    What changes no byte of a tensor: workers (0: one a core), memory in bytes, check, force (replace an existing
    draft), max_shard_bytes, device.
    """

    target: Named | None
    source: Named | None = None
    out: str | Path | None = None
    engine: str = DEFAULT
    scheme: Scheme | str | Path | None = None
    input_scales: Named | None = None
    experts: Count = "match"
    prune_by: str = ""
    keep_experts: Named | Sequence[int] | None = None
    inputs: str | Path | None = None
    scales: str = RTN.name
    tp: int = 1
    ep: bool = False
    kv_cache_dtype: str = "auto"
    overlay: str | Path | None = None
    standalone: bool = False
    workers: int = 0
    memory: int = 2 << 30
    check: CheckMode = "sample"
    force: bool = False
    max_shard_bytes: int | None = None
    device: str = "cpu"
    offline: bool = False

    @property
    def fits_codes(self) -> bool:
        """Whether codes are fitted to the inputs."""
        return method(self.scales).needs_inputs

    @property
    def serving(self) -> Serving:
        """How the draft will be served."""
        return Serving(self.tp, self.ep, kv_cache_dtype=self.kv_cache_dtype)

    @property
    def judge(self) -> str | None:
        """Key of the engine that the draft is for; None for an extract."""
        return self.engine if self.target is not None else None


@dataclass(frozen=True, slots=True)
class Watching:
    """Who is told what is decided on the way, and how far long phases are."""

    on_remark: OnRemark
    on_progress: OnProgress

    @classmethod
    def by(cls, on_remark: OnRemark | None, on_progress: OnProgress | None) -> Watching:
        """Those who want to be told."""
        return cls(on_remark or _ignore, on_progress or _ignore)


def _ignore(_told: object) -> None:
    """Nobody listens."""
