"""Two ways to have no scheme for a target: vLLM does not take it, or it does and we cannot write the draft yet."""

from __future__ import annotations

from collections.abc import Mapping

from mtpforge.errors import MtpforgeError, Where

_BLOCK = "quantization_config"


def refused(what: str, key: str, why: str, fix: str = "") -> MtpforgeError:
    """VLLM would not start with this target. what: a sentence; key: place in the block; why: vLLM's rule or words."""
    return MtpforgeError(
        what,
        where=Where("config.json", inside=f"{_BLOCK}.{key}" if key else _BLOCK),
        why=f"vLLM would not start: {why}",
        fix=fix or "serve the target with the engine that it was made for",
    )


def needed(raw: Mapping[str, object], *keys: str) -> object:
    """What a block says under the first of these keys that it has; without any vLLM does not start."""
    for key in keys:
        if key in raw:
            return raw[key]
    why = f"`Cannot find any of {list(keys)} in the model's quantization config`"
    raise refused("vLLM takes no such block", keys[-1], why)


def unmade(what: str, key: str) -> MtpforgeError:
    """VLLM takes the target, and no draft can be made for it yet. what: follows `drafts with`."""
    return MtpforgeError(
        f"drafts with {what} cannot be made yet",
        where=Where("config.json", inside=f"{_BLOCK}.{key}"),
        fix="`mtpforge extract --source S -o DIR` writes the layer in BF16",
    )
