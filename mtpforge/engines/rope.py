"""The rope of a config, whichever keys state it, as transformers 5.20 reads them for every engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ROPE: Final = ("rope_parameters", "rope_theta", "rope_scaling")


def rope_seen(config: Mapping[str, object]) -> dict[str, object]:
    """The rope that the engine uses, whichever keys state it."""
    stated = config.get("rope_parameters") or config.get("rope_scaling")
    rope = dict(stated) if isinstance(stated, Mapping) else {}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    kind = rope.get("rope_type", rope.get("type", "default"))
    rest = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type", "type")}
    return {"rope_theta": theta, "rope_type": kind, **rest}
