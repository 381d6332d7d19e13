"""What is asked of SGLang's loader."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """One draft beside one target, served in one way.

    target: folder with config.json, weights not needed; draft: folder; both absolute. tensor_parallel: ranks that are
    played, each of which `arguments` speak of by `--tp-size` or are given it. meta: read headers only, and the
    values of input scales, which SGLang compares while loading. capability: the compute capability that SGLang believes
    in (90, 100, 120, 121). arguments: more words of `sglang serve`. same_config: differences between the two configs
    that do not stop the loading are errors, else notes. compared: config field that the draft's class reads -> what it
    takes for an absent one.
    """

    target: str
    draft: str
    meta: bool = True
    tensor_parallel: int = 1
    capability: int = 90
    arguments: list[str] = field(default_factory=list)
    same_config: bool = True
    compared: dict[str, object] = field(default_factory=dict)
