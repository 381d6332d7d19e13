"""A stored weight: which bytes belong to which of its rows, and what they decode to, a band at a time.

    bands      how tall a band is, and what is in memory beside it
    reading    tensors as they are stored, in buffers that are used again and again
    stored     StoredWeight: bands, decoded bands, what belongs to the whole matrix
    compiling  whether compiled kernels are worth their start, and where they are kept
    kernels    the kernels on bands

Everything that reads a weight goes through here: builds, verification, the choice of experts, the layer as it is run.
Only `checking/libraries.py`, which must share nothing with the code that it checks, reads for itself.
"""

from __future__ import annotations

from mtpforge.weights.reading import Buffers, Reader
from mtpforge.weights.stored import Band, OpenWeight, StoredWeight

__all__ = ["Band", "Buffers", "OpenWeight", "Reader", "StoredWeight"]
