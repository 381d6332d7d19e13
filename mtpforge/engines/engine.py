"""The Engine record: what one serving engine demands of a draft."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mtpforge.report import Trap
from mtpforge.tensors import Spec

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint
    from mtpforge.families import Family
    from mtpforge.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Serving:
    """How the draft will be served: tensor parallel size, expert parallelism, speculative tokens, overrides, port."""

    tensor_parallel: int = 1
    expert_parallel: bool = False
    speculative_tokens: int = 3
    overrides: dict[str, object] = field(default_factory=dict)
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """What one serving engine demands of a draft.

    scheme(target, family): the scheme that the engine would build the draft's modules with, from the target's config;
        one rule per module template, `reason` says which pattern decided. Raises MtpforgeError for a target that the
        engine refuses (unknown method, fused pair half ignored).
    expected(scheme, family, config, layer, n_experts): every tensor that a draft must hold, full name -> Spec.
    draft_config(target, source_config, family, scheme, n_experts): the draft's config.json.
    target_traps(target, family): what is wrong or missing in the target itself, for drafting.
    draft_traps(target_config, draft_config, family, scheme): what is wrong in a draft's config beside that target; in a
        fix, `{target}` stands for the target's name.
    serving_traps(family, config, scheme, serving): combinations that the engine refuses: divisibility, parallelism.
    path_traps(path): a draft path that the engine would misread.
    overrides(target): config overrides that this target needs on the command line.
    serve(target, draft_path, serving): argv of the serve command.
    memory(specs, serving): bytes that the draft adds on one rank.
    most_experts: why a draft may not hold more experts than the target's `{n}`.
    without_layer: what the engine does, asked for MTP, beside a target that has no layer, where no draft is named.
    tied_formats: formats whose matrix-wide weight scale the engine keeps once for a fused set (NVFP4's global scale).
    decoded_on_load: module template -> formats that the engine decodes by itself while loading, though the module is
        built dense.
    """

    name: str
    versions: str
    scheme: Callable[[Checkpoint, Family], Scheme]
    expected: Callable[[Scheme, Family, Mapping[str, object], int, int], dict[str, Spec]]
    draft_config: Callable[[Checkpoint, Mapping[str, object], Family, Scheme, int], dict[str, object]]
    target_traps: Callable[[Checkpoint, Family], tuple[Trap, ...]]
    draft_traps: Callable[[Mapping[str, object], Mapping[str, object], Family, Scheme], tuple[Trap, ...]]
    serving_traps: Callable[[Family, Mapping[str, object], Scheme, Serving], tuple[Trap, ...]]
    path_traps: Callable[[str], tuple[Trap, ...]]
    overrides: Callable[[Checkpoint], dict[str, object]]
    serve: Callable[[Checkpoint, str, Serving], list[str]]
    memory: Callable[[Mapping[str, Spec], Serving], int]
    most_experts: str
    without_layer: str
    tied_formats: frozenset[str] = frozenset()
    decoded_on_load: Mapping[str, frozenset[str]] = field(default_factory=dict)
