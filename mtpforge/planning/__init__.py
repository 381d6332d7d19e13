"""plan(): everything about a draft, decided from headers and configs alone.

No tensor is loaded, torch is not imported.
"""

from __future__ import annotations

from mtpforge.planning.deciding import agreed_scheme, plan, refuse_other_count
from mtpforge.planning.facts import RESERVED_BYTES
from mtpforge.planning.steps import (
    Carry,
    InputScaleMove,
    Move,
    Plan,
    Side,
    Step,
    Unused,
    Write,
)

__all__ = [
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
    "plan",
    "refuse_other_count",
]
