"""ModelOpt's side file of a graft: it says what the block in config.json says, or it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from mtpforge.checkpoint import json_fields, metadata
from mtpforge.checkpoint.checkpoint import Checkpoint
from mtpforge.engines.engine import Engine
from mtpforge.errors import MtpforgeError
from mtpforge.publishing import patches
from mtpforge.publishing.patches import Patch

BLOCK: Final = "quantization_config"


def side_file(
    target: Checkpoint,
    told: Checkpoint,
    engine: Engine,
    carried: Callable[[Mapping[str, object]], Mapping[str, object]],
) -> tuple[Patch | None, bool]:
    """What changes in the side file where the block does, None for nothing; and whether it goes: it could not say so.

    told: the target under the graft's block, to which the engine's own needs are added here, in both files. carried:
    what the side file states, restated as that block was; its MtpforgeError means that it cannot be.
    """
    raw = target.small_file(metadata.SIDE_FILE)
    if raw is None or engine.carrying_config(told).get(BLOCK) == target.config.get(BLOCK):
        return None, False
    try:
        stated = json_fields.load(raw, metadata.SIDE_FILE).values
        said = engine.carrying_config(target.restated(carried(stated)))[BLOCK]
    except MtpforgeError:
        return None, True
    return (patches.difference(stated, said) or None if isinstance(said, Mapping) else None), False
