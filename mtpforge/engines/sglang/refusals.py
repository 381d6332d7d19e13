"""Errors for blocks that SGLang builds no draft by."""

from __future__ import annotations

from typing import Final

from mtpforge.errors import MtpforgeError, Where

DENSE: Final = "`--scheme bf16`: a dense draft loads beside any target"
_BUILT_FOR_IT: Final = "build a draft whose block SGLang reads: `mtpforge build --target CKPT --engine sglang`"


def refused(what: str, key: str, why: str, fix: str = _BUILT_FOR_IT) -> MtpforgeError:
    """SGLang would not start with a draft of this block."""
    return MtpforgeError(
        what,
        where=Where("config.json", inside=f"quantization_config.{key}".rstrip(".")),
        why=f"SGLang would not load the draft: {why}",
        fix=fix,
    )
