"""The nextn layer as a computation: run on calibration inputs, out of transformers' own modules."""

from typing import Final

DEEPEST: Final = 16  # draft steps that are run here at most
