"""The command line: `vllm serve`, config overrides that a target needs, and draft paths that vLLM misreads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.command import Command, Flag, keys_of
from mtpforge.engines.engine import Serving
from mtpforge.engines.vllm.draft_classes import draft_class
from mtpforge.engines.vllm.draft_head import without_head
from mtpforge.engines.vllm.draft_options import Pair, asked, offers
from mtpforge.engines.vllm.expert_counts import refuse_stale
from mtpforge.families import family_of
from mtpforge.report import Trap
from mtpforge.scheme import Scheme

# config/speculative.py (0.33.0): each turns the method into another one before "mtp" is considered.
_METHOD_WORDS: Final = ("eagle-", "eagle3", "dflash", "dspark")
NEXTN: Final = "num_nextn_predict_layers"
_OF_PATCHED: Final = frozenset(("mtp_quantization_config",))
_SPECULATIVE: Final = "config/speculative.py (0.33.0)"
_OVERRIDES: Final = "config/model.py (0.33.0)"


def overrides(target: Checkpoint) -> dict[str, object]:
    """What `--hf-overrides` must say: vLLM counts MTP layers in the target's config, and builds drafts by its block."""
    return {flag.name: flag.plain for flag in _overrides(target)}


def told_config(target: Checkpoint) -> dict[str, object]:
    """The target's config.json with those overrides in it; a nested config is updated, as vLLM does."""
    config = dict(target.config)
    for key, value in overrides(target).items():
        held = config.get(key)
        is_nested = key == "text_config" and isinstance(held, Mapping) and isinstance(value, Mapping)
        config[key] = {**held, **value} if is_nested else value  # type: ignore[dict-item]  # both are Mappings then
    return config


def carrying_config(target: Checkpoint) -> dict[str, object]:
    """The same for a checkpoint that carries the layer: one layer counted, and what its class wants fixed.

    A target states these for its main layers or leaves them to the model type; the layer is built as a draft, of which
    the type is another by then. What only patched builds read of a layer goes: it speaks of another one.
    """
    config, family = told_config(target), family_of(target.config)
    fixed = {name: fixed.value for name, fixed in draft_class(family).fixed.items()}
    text = family.text(config)
    stated = {key: value for key, value in text.items() if key not in _OF_PATCHED} | {NEXTN: 1, **fixed}
    return stated if text is config else {**config, "text_config": stated}


def overrides_of(config: Mapping[str, object]) -> dict[str, object]:
    """The same for a config."""
    text = family_of(config).text(config)
    if text.get(NEXTN):
        return {}
    return {NEXTN: 1} if text is config else {"text_config": {NEXTN: 1}}


def _overrides(target: Checkpoint) -> Iterator[Flag]:
    yield from keys_of(
        overrides_of(target.config),
        "the target's config.json counts no MTP layer, and vLLM counts there, not in the draft's",
        f"the target's config.json, `{NEXTN}`; {draft_class(family_of(target.config)).source}",
    )
    block = without_head(target, family_of(target.config))
    if target.is_restated:
        yield Flag(
            "quantization_config",
            dict(block),
            "vLLM builds the draft by the target's block: this is it, changed for the MTP layer alone",
            "`build --scheme`, as the draft's mtpforge.json says; config/model.py, _apply_dict_overrides (0.33.0)",
        )
    elif block is not target.quantization:
        yield Flag(
            "quantization_config",
            dict(block),
            "the target's block, with the draft's head excluded: vLLM stops over it before the target's is put in",
            "quantization/modelopt.py:2077, config/model.py, _apply_dict_overrides (0.33.0)",
        )


def serve(target: Checkpoint, draft_path: str, serving: Serving, scheme: Scheme) -> Command:
    """The command that serves a target with a draft, each flag with its reason; the draft's path is made absolute.

    A draft at the target's own location is the target's own layer: no model is named, so that vLLM takes the target
    (config/speculative.py, 0.33.0) at the target's revision. MtpforgeError where no command can serve the target.
    """
    refuse_stale(target, family_of(target.config))
    pair = Pair(target, scheme, serving)
    needed = (*_overrides(target), *keys_of(serving.overrides, "as asked for", "overrides of the call"))
    flags = [
        *(
            [Flag("--revision", target.revision, "the commit that was looked at", "`--target`")]
            if target.revision
            else []
        ),
        Flag(
            "--speculative-config", (*_speculative(pair, draft_path),), "vLLM drafts only where told to", _SPECULATIVE
        ),
        *([Flag("--hf-overrides", needed, "what the target's config.json does not say", _OVERRIDES)] if needed else []),
        *_asked_for(serving),
    ]
    return Command(("vllm", "serve", target.location), tuple(flags), offers(pair))


def _speculative(pair: Pair, draft_path: str) -> Iterator[Flag]:
    if draft_path != pair.target.location:
        reason = "the draft's folder; without it vLLM takes the target, and the layer that it holds or lacks"
        yield Flag("model", str(Path(draft_path).absolute()), reason, _SPECULATIVE)
    yield Flag("method", "mtp", "an MTP layer: vLLM runs it with its class for this model_type", _SPECULATIVE)
    count = "tokens that the layer proposes at a time, one run each"
    yield Flag("num_speculative_tokens", pair.serving.speculative_tokens, count, "`-k`; 3 unless asked otherwise")
    yield from asked(pair)


def _asked_for(serving: Serving) -> Iterator[Flag]:
    """Flags that say how it is served, where that is not vLLM's default."""
    if serving.tensor_parallel > 1:
        reason = "ranks that target and draft are cut over; the sizes divide"
        yield Flag("--tensor-parallel-size", serving.tensor_parallel, reason, "`--tp`")
    if serving.expert_parallel:
        yield Flag("--enable-expert-parallel", None, "whole experts are dealt out over the ranks", "`--ep`")
    if serving.kv_cache_dtype != "auto":
        reason = "the KV cache of target and draft; vLLM would choose by the target's config and the GPU"
        yield Flag("--kv-cache-dtype", serving.kv_cache_dtype, reason, "`--kv-cache-dtype`")
    if serving.port is not None:
        yield Flag("--port", serving.port, "where the server listens", "`--port`")


def path_traps(path: str) -> tuple[Trap, ...]:
    """What vLLM would misread in a draft's path: words that name another method, dots that look like Python."""
    found = [
        Trap(
            "path-names-method",
            "error",
            f'the draft\'s path contains "{word}": vLLM takes the method from it instead of "mtp"',
            f'name the draft, and its folders, without "{word}"',
            where=path,
        )
        for word in _METHOD_WORDS
        if word in path.lower()
    ]
    parts = path.split(".")
    if "/" not in path and len(parts) > 1 and all(part.isidentifier() for part in parts):
        found.append(
            Trap(
                "path-looks-like-python",
                "error",
                "the draft's path looks like a Python class to vLLM (dots, no `/`)",
                f"`./{path}`, or the absolute path",
                where=path,
            )
        )
    return tuple(found)
