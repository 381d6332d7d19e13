"""plan(): everything about a draft, decided from headers and configs alone.

No tensor is loaded, torch is not imported.
"""

from __future__ import annotations

from mtpforge.planning.deciding import agreed_scheme, plan, refuse_surplus
from mtpforge.planning.facts import RESERVED_BYTES
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
    "RESERVED_BYTES",
    "Carry",
    "InputScaleMove",
    "Move",
    "Plan",
    "Side",
    "Step",
    "Unused",
    "Write",
    "agreed_scheme",
    "band_rows",
    "plan",
    "refuse_surplus",
]
