"""The rope of a config, whichever keys state it, as transformers 5.20 reads them for every engine."""

from __future__ import annotations

from collections.abc import Mapping


def rope_seen(config: Mapping[str, object], beside: Mapping[str, object] | None) -> dict[str, object]:
    """The rope that the engine uses, whichever keys state it.

    beside: keys of it that may stand at the top as well, and what is taken for an absent one; None for none.
    """
    stated = config.get("rope_parameters") or config.get("rope_scaling")
    rope = dict(stated) if isinstance(stated, Mapping) else {}
    theta = rope.get("rope_theta", config.get("rope_theta"))
    kind = rope.get("rope_type", rope.get("type", "default"))
    rest = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type", "type")}
    top = {key: default if config.get(key) is None else config[key] for key, default in (beside or {}).items()}
    return {"rope_theta": theta, "rope_type": kind, **top, **rest}
