"""Fields of the two config.json that an engine reads from the draft's and does not compare with the target's."""

from __future__ import annotations

from collections.abc import Mapping

ROPE = "rope_parameters"  # whichever keys of config.json state it


def compare(engine: str, target: object, draft: object, compared: Mapping[str, object], doubts: list[str]) -> None:
    """Add every difference between two PreTrainedConfigs to `doubts`.

    compared: field that the draft's class reads -> what it takes for an absent one.
    """
    for name, default in {**compared, ROPE: None}.items():
        ours, theirs = getattr(target, name, default), getattr(draft, name, default)
        if ours != theirs:
            doubts.append(
                f"config {name}: draft has {plain(theirs)!r}, target {plain(ours)!r}; {engine} builds the layer with "
                "one of them and does not compare"
            )


def plain(value: object) -> object:
    """What JSON knows, else its text."""
    return value if isinstance(value, int | float | str | bool | None | list | dict) else str(value)
