"""The Engine record: what one serving engine demands of a draft."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtpforge import errors
from mtpforge.engines.command import Command
from mtpforge.engines.counters import Counters
from mtpforge.errors import MtpforgeError, shown
from mtpforge.report import Report, Trap
from mtpforge.tensors import Quantization, Spec

if TYPE_CHECKING:
    from mtpforge.checkpoint.checkpoint import Checkpoint
    from mtpforge.engines.child import Findings
    from mtpforge.families import Family
    from mtpforge.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Serving:
    """How the draft will be served: tensor parallel size, expert parallelism, speculative tokens, overrides, port.

    kv_cache_dtype: of the KV cache, in the engine's words; the engine's own choice where it is "auto". draft_options:
    what else the engine is to be told of drafting, by its own keys.
    """

    tensor_parallel: int = 1
    expert_parallel: bool = False
    speculative_tokens: int = 3
    overrides: dict[str, object] = field(default_factory=dict)
    port: int | None = None
    kv_cache_dtype: str = "auto"
    draft_options: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KvCache:
    """What one token takes in the KV cache of one rank, target and draft together, and the dtype that it is kept in."""

    dtype: str
    token_bytes: int


def own_config(checkpoint: Checkpoint) -> dict[str, object]:
    """A checkpoint's config.json with the quantization block in force, wherever that is stored."""
    block = {"quantization_config": dict(checkpoint.quantization)} if checkpoint.quantization else {}
    return {**checkpoint.config, **block}


@dataclass(frozen=True, slots=True)
class Engine:
    """What one serving engine demands of a draft.

    name: for people. versions: that the rules hold for. package: its distribution, as pip names it.
    demands(target, draft_config, family): the scheme that the engine would build the draft's modules with; one rule per
        module template, `reason` says what decided. draft_config is the draft's config.json with the quantization block
        in force, None for a draft that is still to be made: where the draft's own block decides, the answer is then the
        scheme to make it in unless another is asked for. Raises MtpforgeError for a pair that the engine refuses.
    runs(family): whether the engine's draft class for a family is known.
    refuse_misstated(target, source_config, family): MtpforgeError for a key that the target's config.json lacks and
        that a draft beside it could only guess, or that holds something else than a number where one must be.
    draft_config(target, source_config, family, scheme, n_experts): the draft's config.json; refuses the same.
    restate(target, family, wanted): the quantization block that the engine has to be told of the target, so that it
        builds the draft as wanted and nothing else otherwise; the target's own where that says so already, or where a
        draft's block decides. MtpforgeError where it cannot be said.
    told_config(target): the target's config.json as the engine sees it, told what it has to be.
    carrying_config(target): the target's config.json for a checkpoint that carries the layer itself: what it is told,
        and what is read from a draft's config otherwise.
    carry(target, family, wanted): the quantization block of a checkpoint that carries the layer itself: under it the
        engine builds the layer as wanted and nothing else otherwise. MtpforgeError where it cannot be said.
    disturbed(target, told, family): the first matrix around the layer that the engine would build otherwise by the
        block of `told` than by the target's, "" for none.
    merged(sides, family, origin): the quantization block of a model whose modules come from several checkpoints, the
        base first, and how it has each module stored: full name -> Quantization, of experts the names of number 0.
        origin: full name -> the side, None for no such module. MtpforgeError where no one block can say it.
    stated(draft_config, family): the scheme that a draft's own block states.
    target_traps(target, family): what is wrong or missing in the target itself, for drafting.
    draft_traps(target_config, draft_config, family, scheme): what is wrong in a draft's config beside that target; in a
        fix, `{anew}` stands for how to make the draft anew.
    block_traps(block, is_quantized): what is wrong with a draft's own quantization block ({} for none) beside tensors
        of which some are quantized, or none is.
    serving_traps(family, config, scheme, serving): combinations that the engine refuses: divisibility, parallelism.
    path_traps(path): a draft path that the engine would misread.
    serve(target, draft_path, serving, scheme): the serve command, with every flag that the pair needs, and its reason.
    memory(family, config, specs, serving): bytes that the draft adds on one rank.
    kv_cache(target, family, serving): what a token takes in the KV cache, None where that is not known; MtpforgeError
        for a dtype that the engine does not take.
    kv_cache_dtypes, draft_options: what may be asked for of the cache, and keys for cheaper drafts.
    never_quantized(family): templates that the engine builds dense whatever a block says.
    decoded_on_load(family): module template -> formats that the engine decodes by itself while loading, though the
        module is built dense.
    is_installed(): whether it can be run by this interpreter; nothing is imported.
    ask(draft, target, serving, python): what the engine's own loader says, by an interpreter, None for this one.
    most_experts: why a draft may not hold more experts than the target's `{n}`.
    fewer_experts(family): why a draft may not hold fewer experts than its target; "" where it may.
    without_layer(family): what the engine does, asked for MTP, without a layer in the target and without a draft.
    decides: by whose config the engine builds a draft.
    untold: the same engine, for trying schemes: its refusals propose none; None where the engine's never do.
    tied_formats: formats whose matrix-wide weight scale the engine keeps once for a fused set (NVFP4's global scale).
    tables(capability, python): what its own tables take at a compute capability, as 90, by an interpreter, None for
        this one: `methods` and `schemes` name -> least capability, `kernels` kind -> names; MtpforgeError where there
        is no such engine.
    forward(draft, target, serving, python, inputs, outputs): the report of one pass of the draft by the engine itself
        on a GPU; None for an engine of which that is not known.
    counters: what a running server tells of its drafting; None for what is no server.
    hiding_files: patterns of weight files beside which the engine reads no others -> why.
    """

    name: str
    versions: str
    package: str
    demands: Callable[[Checkpoint, Mapping[str, object] | None, Family], Scheme]
    runs: Callable[[Family], bool]
    refuse_misstated: Callable[[Checkpoint, Mapping[str, object], Family], None]
    draft_config: Callable[[Checkpoint, Mapping[str, object], Family, Scheme, int], dict[str, object]]
    restate: Callable[[Checkpoint, Family, Scheme], Mapping[str, object]]
    told_config: Callable[[Checkpoint], Mapping[str, object]]
    carrying_config: Callable[[Checkpoint], Mapping[str, object]]
    carry: Callable[[Checkpoint, Family, Scheme], Mapping[str, object]]
    disturbed: Callable[[Checkpoint, Checkpoint, Family], str]
    merged: Callable[
        [Sequence[Checkpoint], Family, Callable[[str], int | None]],
        tuple[Mapping[str, object], Mapping[str, Quantization]],
    ]
    stated: Callable[[Mapping[str, object], Family], Scheme]
    target_traps: Callable[[Checkpoint, Family], tuple[Trap, ...]]
    draft_traps: Callable[[Mapping[str, object], Mapping[str, object], Family, Scheme], tuple[Trap, ...]]
    block_traps: Callable[[Mapping[str, object], bool], tuple[Trap, ...]]
    serving_traps: Callable[[Family, Mapping[str, object], Scheme, Serving], tuple[Trap, ...]]
    path_traps: Callable[[str], tuple[Trap, ...]]
    serve: Callable[[Checkpoint, str, Serving, Scheme], Command]
    memory: Callable[[Family, Mapping[str, object], Mapping[str, Spec], Serving], int]
    never_quantized: Callable[[Family], Collection[str]]
    decoded_on_load: Callable[[Family], Mapping[str, frozenset[str]]]
    is_installed: Callable[[], bool]
    ask: Callable[[Path, Checkpoint, Serving, str | None], Report]
    most_experts: str
    fewer_experts: Callable[[Family], str]
    without_layer: Callable[[Family], str]
    decides: Literal["target", "draft"] = "target"
    tied_formats: frozenset[str] = frozenset()
    kv_cache: Callable[[Checkpoint, Family, Serving], KvCache | None] = lambda *_: None
    kv_cache_dtypes: tuple[str, ...] = ("auto",)
    draft_options: tuple[str, ...] = ()
    tables: Callable[[int, str | None], Mapping[str, object]] = lambda *_: {}
    forward: Callable[[Path, Checkpoint, Serving, str | None, Path, Path], Findings] | None = None
    untold: Engine | None = None
    counters: Counters | None = None
    hiding_files: Mapping[str, str] = field(default_factory=dict)


def refuse_unknown(engine: Engine, serving: Serving) -> None:
    """MtpforgeError for a dtype of the KV cache, or a draft option, that an engine is not known to take."""
    asked = {"--kv-cache-dtype": [serving.kv_cache_dtype], "--draft-option": [*serving.draft_options]}
    known = {"--kv-cache-dtype": engine.kv_cache_dtypes, "--draft-option": engine.draft_options}
    for option, words in asked.items():
        for word in words:
            if word not in known[option]:
                raise MtpforgeError(
                    f"`{option} {shown(word)}` is nothing that {engine.name} is known to take",
                    where=f"option `{option}`",
                    why=f"known: {', '.join(known[option]) or 'none'}",
                    fix=f"leave `{option}` out, or take a known one",
                    code=errors.USAGE,
                )
