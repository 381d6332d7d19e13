"""`python -m loader.tables REQUEST REPORT`: what SGLang's own tables take at a compute capability.

    methods    quant_method -> least capability: every name of QUANTIZATION_METHODS, get_min_capability of its config
    schemes    how compressed-tensors stores a module -> least capability: get_min_capability of each scheme

Source: SGLang 0.5.23, srt/layers/quantization.
"""

from __future__ import annotations

import sys
from typing import Any

from mtpforge.engines.loading.answering import answer, leave
from mtpforge.engines.loading.device import Device, packages
from mtpforge.engines.loading.verdict import Findings

from . import stand_in


def _prepare(device: Device) -> None:
    stand_in.prepare(device.capability)


def _fill(_: Device, findings: Findings) -> None:
    from sglang.srt.layers.quantization import QUANTIZATION_METHODS
    from sglang.srt.layers.quantization.compressed_tensors import schemes

    listed = ((name, getattr(schemes, name)) for name in schemes.__all__)
    findings.facts |= {
        "packages": packages(),
        "methods": _least(sorted(QUANTIZATION_METHODS.items())),
        "schemes": _least(listed),
    }


def _least(classes: Any) -> dict[str, int]:  # noqa: ANN401  pairs of a name and a class of SGLang's
    """Of those that hold a number; a class that leaves it to the ones below it holds none."""
    found = {}
    for name, each in classes:
        try:
            least = each.get_min_capability()
        except (AttributeError, NotImplementedError, TypeError):
            continue
        if isinstance(least, int):
            found[name] = least
    return found


if __name__ == "__main__":
    leave(answer("sglang", Device, _prepare, _fill, sys.argv[1:]))
