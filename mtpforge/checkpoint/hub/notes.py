"""What people should know while the hub is asked: that it is waited for, that a copy is used instead.

Python's own logging carries it, as huggingface_hub's warnings; the command line prints it as notes.
"""

from __future__ import annotations

import logging
from typing import Final

LOG: Final = logging.getLogger("mtpforge.notes")
