"""plan(): everything about a draft, decided from headers and configs alone.

No tensor is loaded, torch is not imported.
"""

from __future__ import annotations

from mtpforge.planning.deciding import plan
from mtpforge.planning.steps import (
    BAND_ELEMENTS,
    Carry,
    InputScaleMove,
    Move,
    Plan,
    Side,
    Step,
    Unused,
    Write,
    band_rows,
)

__all__ = [
    "BAND_ELEMENTS",
    "Carry",
    "InputScaleMove",
    "Move",
    "Plan",
    "Side",
    "Step",
    "Unused",
    "Write",
    "band_rows",
    "plan",
]
