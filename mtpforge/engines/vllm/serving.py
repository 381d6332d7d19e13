"""The command line: `vllm serve`, config overrides that a target needs, and draft paths that vLLM misreads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Serving
from mtpforge.engines.vllm.expert_counts import refuse_stale
from mtpforge.families import family_of
from mtpforge.report import Trap
from mtpforge.scheme import Scheme

# config/speculative.py (0.33.0): each turns the method into another one before "mtp" is considered.
_METHOD_WORDS: Final = ("eagle-", "eagle3", "dflash", "dspark")
NEXTN: Final = "num_nextn_predict_layers"


def overrides(target: Checkpoint) -> dict[str, object]:
    """What `--hf-overrides` must say: vLLM counts MTP layers in the target's config, and builds drafts by its block."""
    block = {"quantization_config": dict(target.quantization)} if target.is_restated else {}
    return {**overrides_of(target.config), **block}


def overrides_of(config: Mapping[str, object]) -> dict[str, object]:
    """The same for a config."""
    text = family_of(config).text(config)
    if text.get(NEXTN):
        return {}
    return {NEXTN: 1} if text is config else {"text_config": {NEXTN: 1}}


def serve(target: Checkpoint, draft_path: str, serving: Serving, _scheme: Scheme) -> list[str]:
    """The command, as a list, that serves a target with a draft; the draft's path is made absolute.

    A draft at the target's own location is the target's own layer: no model is named, so that vLLM takes the target
    (config/speculative.py, 0.33.0) at the target's revision. MtpforgeError where no command can serve the target.
    """
    refuse_stale(target, family_of(target.config))
    model = {} if draft_path == target.location else {"model": str(Path(draft_path).absolute())}
    speculative = {**model, "method": "mtp", "num_speculative_tokens": serving.speculative_tokens}
    command = ["vllm", "serve", target.location]
    if target.revision:
        command += ["--revision", target.revision]
    command += ["--speculative-config", json.dumps(speculative)]
    if needed := {**overrides(target), **serving.overrides}:
        command += ["--hf-overrides", json.dumps(needed)]
    if serving.tensor_parallel > 1:
        command += ["--tensor-parallel-size", str(serving.tensor_parallel)]
    if serving.expert_parallel:
        command += ["--enable-expert-parallel"]
    if serving.kv_cache_dtype != "auto":
        command += ["--kv-cache-dtype", serving.kv_cache_dtype]
    if serving.port is not None:
        command += ["--port", str(serving.port)]
    return command


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
